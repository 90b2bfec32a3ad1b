"""Checkpoints that hold everything, are either whole or absent, and say so when a byte has changed.

A checkpoint is a folder `step-00000500/` of safetensors files and a `manifest.json` with the sha256 of each
(`irdm.files.sealed_folder`): a killed process leaves the last good state.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irdm.files import MANIFEST, misfits, read_sealed, read_tensors, sealed_folder, write_tensors
from irdm.ops.shards import divided_like

UNUSABLE = "This checkpoint is not usable."


@dataclass
class Progress:
    """How far a run is, and what it took: part of every checkpoint."""

    step: int = 0
    skipped: int = 0
    in_a_row: int = 0
    train_seconds: float = 0.0
    core_seconds: float = 0.0
    checks: list[dict] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of what went before the first step."""

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Notes the seconds of a block."""
        began = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - began

    def skip(self, most: int) -> str:
        """Count a step that was not finite; what to say of it. Raises FloatingPointError after `most` in a row."""
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == most:
            raise FloatingPointError(
                f"{most} steps in a row were not finite, the last at step {self.step + 1}; the newest checkpoint is "
                "from before them. Lower --lr or --clip-norm."
            )
        return f"step {self.step + 1}: the loss or its gradient is not finite; skipped ({self.skipped} so far)"

    def summary(self, rollout: int, ranks: int) -> dict[str, float]:
        """What a result says of the training that it judges."""
        return {
            "steps": self.step,
            "skipped_steps": self.skipped,
            "images_per_second": self.step * rollout / self.train_seconds,
            "core_seconds": self.core_seconds,
            "ranks": ranks,
            "alarms": sum(entry["alarm"] for entry in self.checks),
        }


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` {group: {name: tensor}} and the JSON `state` of one step; `files` {group: {"bytes", "sha256"}}."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    files: dict[str, dict[str, Any]]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write `folder/step-<step>` atomically, then delete all but the newest `keep`; on OSError the old stay."""
    target = folder / f"step-{step:08d}"
    with sealed_folder(target, {"step": step, "state": dict(state)}) as (partial, record):
        for name, group in tensors.items():
            record["files"][f"{name}.safetensors"] = write_tensors(partial / f"{name}.safetensors", group)
    for old in _folders(folder)[:-keep]:
        shutil.rmtree(old)
    return target


class Writer:
    """Writes checkpoints in a thread, one at a time: the files are those of `save_checkpoint`.

    As a context it ends with the last one: what went wrong with it is raised, unless something else is on its way.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._last: Future[Path] | None = None

    def write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Begin to write what nobody changes any more. Raises OSError when the one before could not be written."""
        self.wait()
        self._last = self._thread.submit(save_checkpoint, self._folder, step, tensors, state, self._keep)

    @property
    def failed(self) -> bool:
        """Whether the last one is known not to have been written; `wait` raises why."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def wait(self) -> None:
        """Until the last one is there. Raises OSError when it could not be written."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()


def load_checkpoint(path: Path) -> Checkpoint:
    """Verify one checkpoint folder and map its tensors into memory: pages are read as they are used.

    Raises ValueError naming a file that is missing, cut short or altered.
    """
    record = read_sealed(path, UNUSABLE)
    step, state = record.get("step"), record.get("state")
    if not isinstance(step, int) or not isinstance(state, dict):
        raise ValueError(f"{path / MANIFEST} names no step or no state. {UNUSABLE}")
    files = {name.removesuffix(".safetensors"): entry for name, entry in record["files"].items()}
    tensors = {name: read_tensors(path / f"{name}.safetensors", UNUSABLE)[0] for name in files}
    return Checkpoint(step, tensors, state, files)


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with each newer one that was refused.

    Raises ValueError when there are checkpoints and none is usable.
    """
    refused = []
    for path in reversed(_folders(folder)):
        try:
            return load_checkpoint(path), refused
        except ValueError as error:
            refused.append(str(error))
    if refused:
        raise ValueError(
            "No checkpoint is usable:\n  " + "\n  ".join(refused) + f"\nRestore one, or delete {folder} to start again."
        )
    return None, []


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The state of an optimizer, such as moments, by "slot.parameter": what a checkpoint keeps of it.

    `names` are those of the parameters in the order in which the optimizer was given them.
    """
    state = optimizer.state_dict()["state"]
    return {f"{slot}.{names[i]}": tensor for i, slots in state.items() for slot, tensor in slots.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Continue from `optimizer_tensors`.

    Raises ValueError naming what belongs to no parameter or to one of another shape, and parameters without a state.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = {name: i for i, name in enumerate(names)}
    assert len(index) == len(parameters), f"{len(index)} names for {len(parameters)} parameters"
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition(".")
        if name not in index:
            raise ValueError(f"The optimizer's state has {key}, but there is no parameter '{name}' to train.")
        parameter = parameters[index[name]]
        if tensor.ndim and tensor.shape != parameter.shape:  # scalars count steps
            raise ValueError(f"The optimizer's state has {key} {list(tensor.shape)}, expected {list(parameter.shape)}.")
        state.setdefault(index[name], {})[slot] = divided_like(tensor, parameter) if tensor.ndim else tensor
    if state and (left := [name for name in names if index[name] not in state]):
        raise ValueError(f"The optimizer's state has nothing of the parameter(s) {', '.join(left[:5])}.")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


@torch.no_grad()
def restore(live: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: Path | str) -> None:
    """Copy saved tensors into those of a module, such as its parameters or its `state_dict()`.

    Raises ValueError naming `where` they are from and every one that is missing, unknown, or of another type or shape.
    """
    if odd := misfits(tensors, live):
        listed = "\n  ".join(odd[:10]) + ("\n  ..." if len(odd) > 10 else "")
        raise ValueError(f"{where} holds the weights of another network:\n  {listed}")
    for name, tensor in live.items():
        tensor.copy_(divided_like(tensors[name], tensor))


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []
