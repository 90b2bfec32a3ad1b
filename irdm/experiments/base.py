"""What a study is: cells that are trained and measured for several seeds, a figure of them, and claims about them.

A *cell* is one training run; it yields one or more *rows*, each a dictionary of numbers. A table maps every row to the
values of each number over the seeds.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from irdm.data import DigitsConfig
from irdm.distances import NystromMMDConfig
from irdm.evaluation import EvaluationConfig, Result
from irdm.log import read_log
from irdm.metrics.score import Score
from irdm.presets import RunConfig, fashion
from irdm.run import CONFIG, read_config
from irdm.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = dict[str, float]
Table = Mapping[str, Mapping[str, "Values"]]

PROBE_STEPS = 14  # steps of the short run that finds out how long a step takes
PROBE_WARM = 4  # the first of them, which are not counted


@dataclass(frozen=True)
class Values:
    """One number over the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Their standard deviation; 0 for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        digits = 3 if abs(self.mean) < 10 else 1 if abs(self.mean) < 100 else 0
        spread = f" ± {self.spread:.{digits}f}" if len(self.values) > 1 else ""
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Claim:
    """A sentence about the table, what the paper gives for it, what we measured, and whether it holds here."""

    text: str
    paper: str
    ours: str
    holds: bool


@runtime_checkable
class Cell(Protocol):
    """One training run of a study. `key` says what is computed, so that a resumed study trusts a finished cell."""

    @property
    def key(self) -> str:
        """Everything that decides the numbers, as JSON."""
        ...

    def run(self, name: str, out: Path, seed: int) -> dict[str, Numbers]:
        """Train into the folder `out` (or resume there) and measure: {row: numbers}."""
        ...


def _judged(run: Path, result: Result | None) -> Numbers:
    assert result is not None, "a run without an evaluation needs a measure of its own"
    return scores(result.scores)


@dataclass(frozen=True)
class TrainCell:
    """A run of the ordinary trainer.

    With `core_seconds` the number of steps is what fits into so much computing time on one core: a short run measures a
    step, then the steps are fixed, so that the learning-rate schedule is known, a twentieth of them warm-up. `measure`
    turns the run directory and its result into the numbers of the row.
    """

    config: RunConfig
    measure: Callable[[Path, Result | None], Numbers] = field(default=_judged)
    core_seconds: float | None = None

    @property
    def key(self) -> str:
        """The configuration, the budget and the name of the measurement."""
        return json.dumps([self.config.identity(), self.core_seconds, self.measure.__qualname__])

    def run(self, name: str, out: Path, seed: int) -> dict[str, Numbers]:
        """Train and measure."""
        config = self.config.model_copy(update={"seed": seed})
        if self.core_seconds is not None:
            steps = self._steps(config, out)
            every = max(1, steps // 4)
            schedule = {"steps": steps, "warmup": steps // 20, "check_every": every, "checkpoint_every": every}
            config = config.model_copy(update=schedule)
        result = train(config, out, command="irdm experiment")
        spent = float(read_log(out / "metrics.jsonl")[0][-1]["core_seconds"])
        return {name: self.measure(out, result) | {"steps": float(config.steps), "core_seconds": spent}}

    def _steps(self, config: RunConfig, out: Path) -> int:
        """Steps in the budget; found once for a run directory, which remembers them in its config.json."""
        assert self.core_seconds is not None
        if (out / CONFIG).exists():
            return read_config(out / CONFIG).steps
        probe = out.with_name(out.name + "-probe")
        shutil.rmtree(probe, ignore_errors=True)
        short = {"steps": PROBE_STEPS, "log_every": 1, "evaluation": None}
        train(config.model_copy(update=short), probe)
        lines = [line["core_seconds"] for line in read_log(probe / "metrics.jsonl")[0]]
        shutil.rmtree(probe)
        step = statistics.median(b - a for a, b in pairwise(lines[PROBE_WARM:]))
        return max(1, math.floor(self.core_seconds / step))


@dataclass(frozen=True)
class Study:
    """A study of the paper: what `irdm experiment NAME` runs.

    `cells(scale)` are the runs, `scale` being the share of the full iterations or seconds (1 is what is recorded);
    `figure(table, folder)` draws, where `folder(cell, i)` is the run directory of the i-th seed; `claims(table)` states
    what was found beside what the paper says; `columns` are the numbers that its results table shows, with headings.
    """

    name: str
    title: str
    question: str
    columns: Mapping[str, str]
    cells: Callable[[float], Mapping[str, Cell]]
    figure: Callable[[Table, Callable[[str, int], Path]], Figure]
    claims: Callable[[Table], list[Claim]]
    notes: str = ""


def scores(found: Mapping[str, Score]) -> Numbers:
    """The columns of judged images that the studies share: ratios, for which real is near 1, and label accuracy."""
    columns = {
        "sw": ("sw_ratio", "mean"),
        "sw_held_in": ("sw_ratio", "held_in"),
        "sw_held_out": ("sw_ratio", "held_out"),
        "sw_unseen": ("sw_ratio_unseen", "mean"),
        "mmd": ("mmd_ratio", "mean"),
        "mmd_held_out": ("mmd_ratio", "held_out"),
        "neighbour": ("nearest_neighbour_ratio", "mean"),
        "accuracy": ("label_accuracy", "mean"),
    }
    estimates = {name: getattr(found.get(score), group, None) for name, (score, group) in columns.items()}
    return {name: estimate.value for name, estimate in estimates.items() if estimate is not None}


@dataclass(frozen=True)
class Setting:
    """The images of a study and the time for them: runs that differ from a recipe, `longer` times those on digits.

    The evaluation is lighter, since spread comes from the seeds of a study.
    """

    name: str
    recipe: Callable[[], RunConfig]
    longer: float
    evaluation: EvaluationConfig

    def run(self, **changes: object) -> RunConfig:
        """The recipe, and `changes` to it."""
        light = {"preset": "study", "evaluation": self.evaluation}
        return RunConfig.model_validate(self.recipe().model_copy(update=light | changes).model_dump())

    def seconds(self, on_digits: float) -> float:
        """Of training, where it is so many on digits."""
        return self.longer * on_digits


def perceptron() -> RunConfig:
    """Digits by a perceptron, six encoders that train and the gated controller, from which arms differ."""
    return RunConfig(
        preset="study",
        data=DigitsConfig(),
        distance=NystromMMDConfig(bandwidths=(0.25, 0.5, 1.0), condition_bandwidth=0.3),
        rollout=1024,
        steps=400,
        lr=9e-3,
        warmup=20,
        final_lr=0.01,
        ema_decay=0.99,
        check_every=100,
        checkpoint_every=100,
    )


DIGITS = Setting("digits", perceptron, 1.0, EvaluationConfig(resamples=2))
FASHION = Setting(
    "Fashion-MNIST",
    fashion,
    5.0,
    EvaluationConfig(resamples=2, rows=2500, table_rows=10_000, manifold_rows=2000, ladder=0),
)


def on_fashion(study: Study, cells: Callable[[float, Setting], Mapping[str, Cell]]) -> Study:
    """A study of digits on clothes."""
    return replace(
        study,
        name=f"{study.name}-fashion",
        title=study.title.replace(DIGITS.name, FASHION.name),
        cells=lambda scale: cells(scale, FASHION),
        notes=f"Each run has {FASHION.longer:g} times the seconds of that on digits.",
    )


SCORE_COLUMNS = {
    "sw": "SW ratio, all",
    "sw_held_in": "held in",
    "sw_held_out": "held out",
    "sw_unseen": "unseen",
    "mmd": "MMD ratio",
    "neighbour": "neighbour",
    "accuracy": "accuracy",
}
"""Headings of `scores`."""
