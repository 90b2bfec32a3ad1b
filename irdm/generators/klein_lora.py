"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on klein: W + (alpha / r) B A with alpha = r."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from irdm.generators.klein_names import bfl_name, to_diffusers

if TYPE_CHECKING:
    from diffusers import Flux2Transformer2DModel

ADAPTERS = "lora_adapter_metadata"  # the note of a safetensors file in which diffusers keeps rank and alpha
BFL = "diffusion_model."  # before the names of ComfyUI's adapters
ATTENTION = ("to_q", "to_k", "to_v", r"to_out\.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TARGETS = (
    rf"transformer_blocks\.\d+\.(attn\.({'|'.join(ATTENTION)})|ff(_context)?\.linear_(in|out))"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
"""Every linear map of the blocks, matched whole. Not `norm_out`: loaders of BFL's names do not swap its halves."""


def add_lora(transformer: Flux2Transformer2DModel, rank: int) -> None:
    """Adapters in float32 on a frozen transformer, which draws as before until they are trained (B is 0)."""
    try:
        from peft import LoraConfig
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch, for one
        raise ValueError(f"Adapters need the package peft, which cannot be imported here ({error}).") from error
    transformer.requires_grad_(False)
    # Files that lose their alpha are loaded with alpha = r, so that is what it is.
    transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=f"({TARGETS})")
    )
    for name, parameter in transformer.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def adapters(transformer: Flux2Transformer2DModel) -> dict[str, tuple[Tensor, Tensor]]:
    """{module: (A [r, inputs], B [outputs, r])} under diffusers' names."""
    state = transformer.state_dict()
    a, b = ".lora_A.default.weight", ".lora_B.default.weight"
    return {name.removesuffix(a): (state[name], state[name.removesuffix(a) + b]) for name in state if name.endswith(a)}


def merged(transformer: Flux2Transformer2DModel) -> dict[str, Tensor]:
    """The weights of the transformer as one without adapters has them: W + B A, in float32, where there are some."""
    pairs, found = adapters(transformer), {}
    for name, tensor in transformer.state_dict().items():
        if ".lora_" in name:
            continue
        name = name.replace(".base_layer.", ".")
        if pair := pairs.get(name.removesuffix(".weight")):
            tensor = tensor.float() + pair[1] @ pair[0]
        found[name] = tensor
    return found


def lora_file(transformer: Flux2Transformer2DModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the notes of diffusers' `pytorch_lora_weights.safetensors`: without the notes alpha is lost."""
    state = {}
    for name, (a, b) in adapters(transformer).items():
        state |= {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b}
    config = transformer.peft_config["default"].to_dict()
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    said = {f"transformer.{name}": value for name, value in plain.items()}
    return state, {"format": "pt", ADAPTERS: json.dumps(said, sort_keys=True)}


def lora_file_bfl(transformer: Flux2Transformer2DModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same adapters under the names of ComfyUI and Black Forest Labs.

    Those of q, k and v become one of rank 3 r, exactly: A on top of each other, B along a diagonal.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    fused: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for module, pair in adapters(transformer).items():
        name, part = bfl_name(module)
        if part is None:
            pairs[name] = pair
        else:
            fused.setdefault(name, {})[part] = pair
    for name, three in fused.items():
        parts = [three[i] for i in range(3)]
        pairs[name] = torch.cat([a for a, _ in parts]), torch.block_diag(*[b for _, b in parts])
    state = {}
    for name, (a, b) in sorted(pairs.items()):
        state |= {f"{BFL}{name}.lora_A.weight": a, f"{BFL}{name}.lora_B.weight": b}
    return state, {"format": "pt"}


def from_bfl(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `lora_file_bfl` as those of `lora_file`, to the bit.

    Raises ValueError for a name that is in no table, and an adapter of q, k and v that is not three side by side.
    """
    found = {}
    for half in ("lora_A", "lora_B"):
        end = f".{half}.weight"
        named = {name.removeprefix(BFL).removesuffix(end): t for name, t in state.items() if name.endswith(end)}
        parts = to_diffusers({f"{name}.weight": tensor for name, tensor in named.items()})  # q, k, v: a third of rows
        for name, tensor in parts.items():
            module = name.removesuffix(".weight")
            _, part = bfl_name(module)
            if part is not None and half == "lora_B":
                thirds = tensor.chunk(3, dim=1)
                if tensor.shape[1] % 3 or any(third.any() for i, third in enumerate(thirds) if i != part):
                    raise ValueError(f"{module} shares its adapter with others, and irdm trains q, k and v apart")
                tensor = thirds[part]
            found[f"transformer.{module}{end}"] = tensor
    if odd := [name for name in state if not name.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise ValueError(f"{odd[0]} is no adapter's name, such as {BFL}MODULE.lora_A.weight")
    return found
