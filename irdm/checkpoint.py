"""Checkpoints that hold everything, are either whole or absent, and say so when a byte has changed.

A checkpoint is a folder `step-00000500/` of safetensors files and a `manifest.json` with the sha256 of each
(`irdm.files.sealed_folder`): a killed process leaves the last good state.

Of weights that are divided over ranks each rank writes its own part, `step-00000500/part-2-of-4/`, a folder like that,
and asks nothing of the others. The checkpoint is whole when all parts are there; any number of ranks can read it.
"""

from __future__ import annotations

import re
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

from irdm.files import (
    MANIFEST,
    hash_of,
    misfits,
    read_sealed,
    read_tensors,
    remove,
    sealed_folder,
    visible,
    write_tensors,
)
from irdm.ops.shards import divided_like

UNUSABLE = "This checkpoint is not usable."
PART = re.compile(r"part-(\d+)-of-(\d+)")


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
    """`tensors` {group: {name: tensor}}, whole, and the JSON `state` of one step; `hashes` {group: sha256}."""

    step: int
    tensors: dict[str, Mapping[str, Tensor]]
    state: dict[str, Any]
    hashes: dict[str, str]


class Joined(Mapping[str, Tensor]):
    """Tensors in parts, which follow each other along the first axis, joined when they are asked for."""

    def __init__(self, parts: Sequence[Mapping[str, Tensor]]) -> None:
        self._parts, self._names = parts, dict.fromkeys(name for part in parts for name in part)

    def __getitem__(self, name: str) -> Tensor:
        found = [part[name] for part in self._parts if name in part]
        return torch.cat(found) if len(found) > 1 else found[0]  # what was not divided, one rank wrote

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
    part: tuple[int, int] = (0, 1),
) -> Path:
    """Write `folder/step-<step>` atomically, then delete all but the newest `keep`; on OSError the old stay.

    `part`: (rank, ranks) where each writes its own part of divided tensors, the first also what is not divided.
    """
    target, (rank, size) = folder / f"step-{step:08d}", part
    place = target if size == 1 else target / f"part-{rank + 1}-of-{size}"
    with sealed_folder(place, {"step": step, "state": dict(state)}) as (partial, record):
        for name, group in tensors.items():
            record["files"][f"{name}.safetensors"] = write_tensors(partial / f"{name}.safetensors", group)
    if rank == 0:
        whole = [path for path in _folders(folder) if not _unfinished(path)]
        for old in _folders(folder):
            if whole and old < whole[-keep:][0]:
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

    def write(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Begin to write what nobody changes any more. Raises OSError when the one before could not be written."""
        self.wait()
        self._last = self._thread.submit(save_checkpoint, self._folder, step, tensors, state, self._keep, part)

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

    Raises ValueError naming a file that is missing, cut short or altered, and of parts how many are not there, or that
    they are of several checkpoints.
    """
    if _unfinished(path):
        found = {size: len(parts) for size, parts in _parts(path).items()}
        told = " and ".join(f"{there} of {size}" for size, there in found.items()) or "none"
        raise ValueError(f"{path} is unfinished: of its parts, one a rank, {told} are there.")
    whole = [parts for size, parts in _parts(path).items() if len(parts) == size]
    if (path / MANIFEST).exists() or not whole:
        return _read(path)
    read = [_read(part) for part in whole[0]]
    names = read[0].hashes
    if any((part.step, [*part.hashes]) != (read[0].step, [*names]) for part in read):
        raise ValueError(f"{path} has parts of several checkpoints. {UNUSABLE}")
    return Checkpoint(
        read[0].step,
        {name: Joined([part.tensors[name] for part in read]) for name in names},
        read[0].state,
        {name: hash_of([part.hashes[name] for part in read]) for name in names},
    )


def _read(path: Path) -> Checkpoint:
    """One sealed folder: all of a checkpoint, or a rank's part."""
    record = read_sealed(path, UNUSABLE)
    step, state = record.get("step"), record.get("state")
    if not isinstance(step, int) or not isinstance(state, dict):
        raise ValueError(f"{path / MANIFEST} names no step or no state. {UNUSABLE}")
    hashes = {name.removesuffix(".safetensors"): entry["sha256"] for name, entry in record["files"].items()}
    tensors = {name: read_tensors(path / f"{name}.safetensors", UNUSABLE)[0] for name in hashes}
    return Checkpoint(step, {**tensors}, state, hashes)


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with each newer one that was refused.

    Raises ValueError when some are finished and none is usable.
    """
    refused = []
    for path in reversed(_folders(folder)):
        try:
            return load_checkpoint(path), refused
        except ValueError as error:
            refused.append(str(error))
    if has_checkpoint(folder):
        raise ValueError(
            "No checkpoint is usable:\n  " + "\n  ".join(refused) + f"\nRestore one, or delete {folder} to start again."
        )
    return None, refused


def has_checkpoint(folder: Path) -> bool:
    """Whether any is finished there."""
    return not all(map(_unfinished, _folders(folder)))


def remove_unfinished(folder: Path) -> None:
    """Delete those that lack a part, so that none is ever made up of what two runs wrote."""
    for path in filter(_unfinished, _folders(folder)):
        remove(path)


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


def _parts(path: Path) -> dict[int, list[Path]]:
    """{ranks: the parts of so many that are there, in order}."""
    found: dict[int, dict[int, Path]] = {}
    for match in filter(None, map(PART.fullmatch, visible(path))):
        found.setdefault(int(match[2]), {})[int(match[1])] = path / match[0]
    return {size: [parts[rank] for rank in sorted(parts)] for size, parts in sorted(found.items())}


def _unfinished(path: Path) -> bool:
    """Whether it is one in parts, and lacks some."""
    parts = _parts(path)
    return all(map(PART.fullmatch, visible(path))) and all(len(there) < size for size, there in parts.items())
