"""Weights of klein from a file, every entry accounted for: a student's transformer, or adapters.

A student is a `.safetensors` file, or a `.pth` of tensors alone or of {"model": tensors, "step": n}, as the authors
published theirs; under Black Forest Labs' names, with or without a prefix, or diffusers'. Adapters have diffusers'
names, or those of ComfyUI.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from irdm.files import read_tensors, unpickled
from irdm.generators.klein_lora import ADAPTERS, BFL, from_bfl
from irdm.generators.klein_names import to_diffusers
from irdm.generators.weights import check_file, entry_problems

if TYPE_CHECKING:
    from irdm.generators.klein import Klein

NOTES = "irdm"  # the note of a safetensors file in which irdm says where its weights are from


def load_student(generator: Klein, path: Path, sha256: str | None = None) -> None:
    """Copy the weights of a file into a generator: all of its transformer, or all of its adapters.

    Raises ValueError when the file is absent, damaged, of another sha256, or not this network's: every entry that is
    missing, unexpected, of another shape or not finite is named. The generator is then unchanged.
    """
    check_file(path, sha256)
    state, notes = read_student(path)
    rank, adapters = generator.lora_rank, any(".lora_A." in name for name in state)
    if adapters != (rank is not None):
        raise ValueError(
            f"{path} holds adapters (LoRA), and all weights are to be trained: set --generator.lora-rank."
            if adapters
            else f"{path} holds a whole transformer, and --generator.lora-rank is {rank}: to train adapters on it, "
            "give it as --generator.base; it must be there again whenever the run is opened."
        )
    state = adapters_of(state, notes, generator, path) if rank is not None else state
    expected = {name.removeprefix("transformer."): tensor for name, tensor in generator.trained().items()}
    _account(state, {name: tensor.shape for name, tensor in expected.items()}, path)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(state[name])


def read_transformer(path: Path, expected: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A whole transformer from a file, of the entries {name: shape}; mapped, and read as it is used.

    Raises ValueError for a file that cannot be read, or holds something else: every entry that differs is named.
    """
    state, _ = read_student(path)
    if any(".lora_A." in name for name in state):
        raise ValueError(
            f"{path} holds adapters (LoRA), and --generator.base is a whole transformer that adapters are trained on; "
            "to start from these, give them as --generator.weights."
        )
    _account(state, expected, path)
    return state


def _account(state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], path: Path) -> None:
    if problems := entry_problems(state, expected):
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"{path} is not of this klein:\n  " + "\n  ".join(problems[:20]) + more)


def read_student(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file under diffusers' names (adapters under their own), and the notes of a safetensors file.

    Raises ValueError for a file that cannot be read, or has a name that is in no table.
    """
    notes: dict[str, str] = {}
    if path.suffix == ".safetensors":
        state, notes = read_tensors(path, "It is damaged: fetch it again.")
    elif path.suffix in (".pth", ".pt"):
        state = _student(path)
    else:
        raise ValueError(f"{path} ends in '{path.suffix}'; weights are read from .safetensors, .pth or .pt.")
    if any(".lora_A." in name for name in state):
        return state, notes
    if any(name.startswith(("transformer_blocks.", "single_transformer_blocks.")) for name in state):
        return state, notes
    try:
        return to_diffusers(state), notes
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def adapters_of(
    state: Mapping[str, Tensor], notes: Mapping[str, str], generator: Klein, path: Path
) -> dict[str, Tensor]:
    """Adapters of a file under the names of the generator's, alpha / r in B.

    Raises ValueError when they are of another rank or base, or of names that are in no table.
    """
    try:
        if all(name.startswith(BFL) for name in state):
            state = from_bfl(state)
        elif odd := [name for name in state if not re.fullmatch(r"transformer\..+\.lora_[AB]\.weight", name)]:
            raise ValueError(f"{odd[0]} is no adapter's name, such as transformer.MODULE.lora_A.weight")
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}. Give a file that `irdm export --to lora` or `lora-bfl` writes, or one of diffusers."
        ) from None
    ranks = sorted({len(tensor) for name, tensor in state.items() if name.endswith(".lora_A.weight")})
    if ranks != [generator.lora_rank]:
        raise ValueError(
            f"{path} has adapters of rank {', '.join(map(str, ranks))}, and --generator.lora-rank is "
            f"{generator.lora_rank}. Set it to theirs."
        )
    base = json.loads(notes.get(NOTES, "{}")).get("base")
    if base not in (None, generator.folder.hashes["transformer"]):
        raise ValueError(
            f"{path} has adapters for another base: a transformer of sha256 {base}, and that of "
            f"{generator.folder.path} is {generator.folder.hashes['transformer']}. Give the folder of theirs."
        )
    said = json.loads(notes.get(ADAPTERS, "{}"))
    scale = said.get("transformer.lora_alpha", ranks[0]) / ranks[0]
    found = {}
    for name, tensor in state.items():
        stem, end = name.removeprefix("transformer.").removesuffix(".weight").rsplit(".", 1)
        found[f"{stem}.{end}.default.weight"] = tensor * scale if end == "lora_B" else tensor
    return found


def _student(path: Path) -> dict[str, Tensor]:
    """Tensors of a PyTorch file, or of its entry `model`."""
    state = unpickled(path, mmap=True)
    beside: list[str] = []
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        beside = [name for name, value in state.items() if name != "model" and not isinstance(value, int | float | str)]
        state = state["model"]
    odd = beside or (
        [name for name, value in state.items() if not isinstance(value, Tensor)]
        if isinstance(state, Mapping)
        else ["no names"]
    )
    if odd:
        raise ValueError(f"{path} holds {', '.join(map(str, odd[:5]))} beside tensors; save the weights alone.")
    return dict(state)
