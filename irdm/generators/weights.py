"""Weights that somebody else trained, before they go into a network: the right file, and every entry accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from irdm.files import sha256_of


def check_file(path: Path, sha256: str | None) -> None:
    """Raises ValueError when there is no such file, or it has another sha256."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}; give the .safetensors, .pth or .pt file of the weights.")
    if sha256 and (found := sha256_of(path)) != sha256:
        raise ValueError(
            f"{path} has the sha256 {found}, expected {sha256}; it is another file or damaged. Fetch it again."
        )


def entry_problems(state: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> list[str]:
    """Every entry that is missing, unexpected, of another shape than {name: shape}, or not finite."""
    problems = [f"missing: {name} {[*shape]}" for name, shape in expected.items() if name not in state]
    for name, tensor in state.items():
        if name not in expected:
            problems.append(f"unexpected: {name} {[*tensor.shape]}")
        elif tensor.shape != expected[name]:
            problems.append(f"another shape: {name} is {[*tensor.shape]}, expected {[*expected[name]]}")
        elif not tensor.isfinite().all():
            problems.append(f"not finite: {name} holds NaN or infinity")
    return problems
