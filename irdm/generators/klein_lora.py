"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on klein: W + (alpha / r) B A with alpha = r."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import Flux2Transformer2DModel

ATTENTION = ("to_q", "to_k", "to_v", r"to_out\.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TARGETS = (
    rf"transformer_blocks\.\d+\.(attn\.({'|'.join(ATTENTION)})|ff(_context)?\.linear_(in|out))"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
"""Every linear map of the blocks, matched whole. Not `norm_out`: loaders of BFL's names do not swap its halves."""


def add_lora(transformer: Flux2Transformer2DModel, rank: int) -> None:
    """Adapters in float32 on a frozen transformer, which draws as before until they are trained (B is 0)."""
    from peft import LoraConfig

    transformer.requires_grad_(False)
    # Files that lose their alpha are loaded with alpha = r, so that is what it is.
    transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=f"({TARGETS})")
    )
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
