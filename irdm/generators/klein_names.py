"""Names of the transformer's weights: Black Forest Labs' (ComfyUI's, the released student's) and diffusers'.

Only two things are more than another name: q, k and v of a double block are one matrix in BFL's files, its rows those
of q, then k, then v; and `final_layer.adaLN_modulation.1` has the rows of (shift, scale), where diffusers'
`norm_out.linear` has (scale, shift).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

FIXED = {  # BFL's to diffusers', all but the last part of the name
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
DOUBLE = {
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
SINGLE = {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"}
SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}
SWAPPED = "norm_out.linear"
BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}
PREFIXES = ("model.diffusion_model.", "model.", "")  # a checkpoint of ComfyUI, the student's .pth, bare


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BFL's tensors under diffusers' names, whichever prefix they all have. Raises ValueError for any unknown name."""
    prefix = next(prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state))
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        bare = name.removeprefix(prefix)
        stem, _, end = bare.rpartition(".")
        if match := re.fullmatch(r"(double_blocks|single_blocks)\.(\d+)\.(.+)", stem):
            kind, number, stem = match.groups()
            block, double = f"{BLOCKS[kind]}.{number}.", kind == "double_blocks"
            if end == "weight" and double and stem in FUSED:
                found |= {f"{block}{new}.weight": part for new, part in zip(FUSED[stem], tensor.chunk(3), strict=True)}
                continue
            plain, norms = (DOUBLE, DOUBLE_NORMS) if double else (SINGLE, SINGLE_NORMS)
            new = plain.get(stem) if end == "weight" else norms.get(stem) if end == "scale" else None
        else:
            block, new = "", FIXED.get(stem) if end == "weight" else None
        if new is None:
            unknown.append(name)
        else:
            found[f"{block}{new}.weight"] = swap_halves(tensor) if new == SWAPPED else tensor
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(state)} names are none of FLUX.2 [klein]: {', '.join(unknown[:5])}. Expected "
            "Black Forest Labs' names, such as double_blocks.0.img_attn.qkv.weight."
        )
    return found


def to_bfl(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, with bare names. Raises ValueError for a name that is not diffusers', or q without k and v."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        stem = name.removesuffix(".weight")
        old, part = bfl_name(stem)
        if part is not None:
            parts.setdefault(f"{old}.weight", {})[part] = tensor
        elif old.endswith("_norm"):
            found[f"{old}.scale"] = tensor
        else:
            found[f"{old}.weight"] = swap_halves(tensor) if stem == SWAPPED else tensor
    if odd := [name for name, three in parts.items() if len(three) != 3]:
        raise ValueError(f"{', '.join(odd[:5])} cannot be made: one of q, k and v is missing.")
    found |= {name: torch.cat([three[i] for i in range(3)]) for name, three in parts.items()}
    return {name: tensor.contiguous() for name, tensor in sorted(found.items())}


def bfl_name(module: str) -> tuple[str, int | None]:
    """BFL's name of a module of diffusers, and which third of its rows that is, if they are fused.

    Raises ValueError for a name that is not in the tables.
    """
    if match := re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", module):
        single, number, rest = match.groups()
        block = f"{'single' if single else 'double'}_blocks.{number}."
        if not single:
            for old, three in FUSED.items():
                if rest in three:
                    return block + old, three.index(rest)
        for old, new in (SINGLE | SINGLE_NORMS if single else DOUBLE | DOUBLE_NORMS).items():
            if rest == new:
                return block + old, None
    for old, new in FIXED.items():
        if module == new:
            return old, None
    raise ValueError(
        f"{module} is no part of FLUX.2 [klein] under diffusers' names, such as transformer_blocks.0.attn.to_q."
    )


def swap_halves(weight: Tensor) -> Tensor:
    """(shift, scale) as (scale, shift), and back."""
    return torch.cat(weight.chunk(2)[::-1])
