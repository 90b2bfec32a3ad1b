"""Weights of pixel MeanFlow on disk: the released files and our own, every entry accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from irdm.files import read_tensors, unpickled, write_tensors
from irdm.generators.weights import check_file, entry_problems

ALIASES = {"._flax_linear.": ".linear.", "._flax_embedding.": ".embedding."}  # of releases converted from JAX
SKIPPED = "rope_freqs"  # a table that follows from the shapes


def save_weights(network: nn.Module, path: Path) -> None:
    """Write a network's weights as one safetensors file, atomically.

    Raises ValueError unless the name ends in .safetensors, OSError when it cannot be written.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"Weights are saved as safetensors, but the path is {path}; end its name in .safetensors.")
    write_tensors(path, network.state_dict())


def load_weights(network: nn.Module, path: Path, sha256: str | None = None) -> None:
    """Read weights into a network: `.safetensors`, or `.pth` / `.pt` without running any code in it.

    Released files may have other names for the same layers, a leading 1 on token parameters, a table of rotations, and
    a second (v) head, which MeanFlow training needs and sampling does not: when it is whole and fits, it is left out.

    Raises:
        ValueError: when the file is absent, damaged, of another sha256, or not this network's; it names every entry
            that is missing, unexpected, of another shape, or not finite. The network is then unchanged.
    """
    check_file(path, sha256)
    state, problems = _rename(_read(path))
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    second = {f"net.v_{name.removeprefix('net.u_')}": s for name, s in shapes.items() if name.startswith("net.u_")}
    expected = shapes | (second if second.keys() & state.keys() else {})
    problems += entry_problems(state, expected)
    if problems:
        raise ValueError(
            f"{path} does not hold the weights of this network. Give the file that belongs to the configured "
            "sizes, image shape and classes, or change those.\n  " + "\n  ".join(problems)
        )
    network.load_state_dict({name: state[name] for name in shapes})


def _read(path: Path) -> Mapping[str, Tensor]:
    """The entries of a file. Raises ValueError for one that cannot be read, or holds anything but named tensors."""
    if path.suffix == ".safetensors":
        state = read_tensors(path, "It is damaged: fetch it again.")[0]
    elif path.suffix in (".pth", ".pt"):
        state = unpickled(path)
    else:
        raise ValueError(f"{path} ends in '{path.suffix}'; weights are read from .safetensors, .pth or .pt.")
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{path} holds a {type(state).__name__}, expected a dictionary of named tensors: a state dict."
        )
    if others := [f"{name} ({type(value).__name__})" for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path} holds {', '.join(others)} beside tensors; save the state dict of the network alone.")
    return state


def _rename(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The entries under our names and in our shapes, and one problem for each name that comes twice."""
    renamed: dict[str, Tensor] = {}
    problems = []
    for found, tensor in state.items():
        name = found
        for alias, ours in ALIASES.items():
            name = name.replace(alias, ours)
        if name.split(".")[-1] == SKIPPED:
            continue
        if name.endswith("_tokens") and tensor.ndim == 3 and len(tensor) == 1:
            tensor = tensor[0]
        if name in renamed:
            problems.append(f"twice: {found} is another name of {name}")
        renamed[name] = tensor
    return renamed, problems
