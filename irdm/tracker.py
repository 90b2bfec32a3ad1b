"""The lines of metrics.jsonl in a tracker as well: TensorBoard or Weights & Biases. The file stays the only source.

A tracker is one function, `track(line)`. A new one is a function here that returns it, and a name in `TRACKERS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

Tracker = Literal["tensorboard", "wandb"]
Track = Callable[[Mapping[str, Any]], None]
"""Receives a line of metrics.jsonl: an object with a `step`."""


def require(name: Tracker | None) -> None:
    """Raises ValueError when the package of a tracker is not installed."""
    if name is not None and find_spec(name) is None:
        raise ValueError(f"--tracker {name} needs a package: pip install -c constraints.txt '.[{name}]'")


def tracker(name: Tracker, run: Path, step: int) -> Track:
    """The tracker of a run directory that goes on after a step. Raises ValueError as `require` does."""
    require(name)
    return TRACKERS[name](run, step)


def numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line by name, those of a group as group/name; `step` is left out, and what is no number."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and prefix + name != "step":
            yield prefix + name, float(value)


def _tensorboard(run: Path, step: int) -> Track:
    """Event files in RUN/tensorboard; what an interrupted run had written beyond the step is taken back."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def track(line: Mapping[str, Any]) -> None:
        for name, value in numbers(line):
            writer.add_scalar(name, value, line["step"])
        writer.flush()

    return track


def _wandb(run: Path, step: int) -> Track:
    """A run of the project `irdm`, one for each run directory; what is set by WANDB_ variables holds."""
    import wandb  # pyright: ignore[reportMissingImports]

    identity = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
    logged = wandb.init(project="irdm", name=run.name, id=identity, resume="allow", dir=str(run))
    return lambda line: logged.log(dict(numbers(line)), step=line["step"])


TRACKERS: dict[Tracker, Callable[[Path, int], Track]] = {"tensorboard": _tensorboard, "wandb": _wandb}
