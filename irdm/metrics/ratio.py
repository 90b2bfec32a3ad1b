"""Distance of generated rows to real rows over the distance of fresh real rows to the same: 1 is as good as real.

    r_e = distance(generated, train) / distance(val, train),    the score is the arithmetic mean over encoders

A distance depends on the number of rows, so all draws have one size n, and since none is smaller than it need be: the
smallest of `EvaluationConfig.rows`, the generated rows, the train rows and half of the val rows. The denominator is the
mean over as many disjoint draws of n as the first half of val holds, and the control puts the second half in the place
of the generated rows. The generated rows make as many disjoint draws as they can; the mean of their distances estimates
without bias what one draw of n scores. Every draw follows one law (`irdm.metrics.base.Pools`).

The interval. Let V be the variance of the distance of ONE real draw of n rows. A row bootstrap cannot give it: at the
null (a real draw against real data) the distance is a degenerate statistic, for which the bootstrap is inconsistent,
and the duplicated rows of a resample inflate the distance itself. Instead real draws of the true size n are made
WITHOUT replacement from the P val rows. Overlap makes them vary less than independent draws: by 1 - (n/P)^2 for the
quadratic part of the statistic, 1 - n/P for its linear part. Dividing by 1 - n/P covers both, and is wide for the
first. With the spread of the generated draws this gives the variance of the ratio (delta method); the interval is
normal on a log scale. Rows are shared by encoders, so the interval of a mean over encoders counts their correlation. It
is conditional on the target rows (train, or val for the unseen ratio).

Letters: n rows of a draw, d features, r generated draws, b real draws, e encoders, k folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from irdm.metrics.base import BLOCK, MIN_ROWS, EvaluationConfig, Law, Pool
from irdm.metrics.intervals import FOLDS, jackknife, over_encoders
from irdm.metrics.score import Estimate, Score
from irdm.ops.rows import Rows, row_blocks

Z95 = 1.96
MOST_DRAWS = 8  # disjoint real draws behind a denominator: more would take longer than they are worth


@runtime_checkable
class Target(Protocol):
    """One real sample under one encoder, prepared once."""

    def distance(self, rows: Float[Tensor, "n d"]) -> float:
        """Distance of a sample to the real one."""
        ...

    def quick(self, blocks: Iterable[Float[Tensor, "s d"]]) -> Callable[[Int64[Tensor, " n"]], float]:
        """A cheap distance of some of these rows, of which only relative changes are used.

        The rows are reduced once to a few numbers each.
        """
        ...


def ratio(
    label: str,
    says: str,
    target: Callable[[str], Target],
    generated: Pool,
    fresh: Pool,
    held_out: Sequence[str],
    config: EvaluationConfig,
    *,
    most: int,
    law: Law,
) -> Score:
    """The ratio by encoder and its means, lower is better; memory is that of a draw, an encoder at a time.

    Args:
        label: SW_r and the like; the number of encoders is appended.
        says: as in Score.
        target: prepares the real sample of an encoder.
        generated: judged rows.
        fresh: real rows that are not in the target.
        held_out: encoders that did not train the generator.
        config: rows, resamples and seed are read.
        most: no draw has more rows than this.
        law: how the pools draw.

    Raises ValueError for too few rows, and fresh rows at distance 0.
    """
    names, seed = list(generated.table.features), config.seed
    n = min(config.rows, most, len(generated), len(fresh) // 2)
    if n < MIN_ROWS:
        raise ValueError(
            f"{label}: got {len(generated)} judged, {most} target and {len(fresh)} fresh real rows; a ratio needs at "
            f"least {MIN_ROWS}, {MIN_ROWS} and {2 * MIN_ROWS}, and thousands to mean something."
        )
    first, second = fresh.halves(seed)
    disjoint = min(len(first) // n, MOST_DRAWS)
    halves = [half.draws(n, disjoint, "half", seed) for half in (first, second)]
    resampled = [fresh.draws(n, 1, "resample", seed, b)[0] for b in range(config.resamples)]
    drawn = generated.draws(n, len(generated) // n, "generated", seed)
    found = _Found(n / len(fresh), disjoint)
    for name in names:
        rows, real = generated.table.features[name], fresh.table.features[name]
        found.add(name, target(name), rows, drawn, real, halves, resampled)
    notes = {"rows": n, "draws": len(drawn), "real_draws": disjoint, "resamples": len(resampled), "law": law}
    return over_encoders(
        f"{label}{len(names)}", "lower", says, names, held_out, found.estimate, found.details, notes=notes
    )


class _Found:
    """Distances of every encoder, and the estimates they make. `overlap` is n/P, `disjoint` the draws of a mean."""

    def __init__(self, overlap: float, disjoint: int):
        self.overlap, self.disjoint = overlap, disjoint
        self.ratios: dict[str, Float64[Tensor, " r"]] = {}
        self.moved: dict[str, Float64[Tensor, " b"]] = {}
        self.replicates: dict[str, Float64[Tensor, " k"]] = {}
        self.controls: dict[str, float] = {}
        self.details: dict[str, dict[str, float]] = {}

    def add(
        self,
        name: str,
        target: Target,
        rows: Rows,
        drawn: Tensor,
        real: Rows,
        halves: Sequence[Tensor],
        resampled: Sequence[Tensor],
    ) -> None:
        """Measure one encoder."""
        means = [[target.distance(real[draw]) for draw in half] for half in halves]
        denominator, control = (sum(values) / len(values) for values in means)
        if not denominator > 0:
            raise ValueError(
                f"Encoder '{name}': fresh real rows lie at distance {denominator}, expected above 0. Do val and train "
                "hold the same images?"
            )
        quick = target.quick(row_blocks(real, BLOCK))
        draws = torch.tensor([quick(draw) for draw in resampled], dtype=torch.float64)
        distances, folds = [], []
        for draw in drawn:
            sample = rows[draw]
            distances.append(target.distance(sample))
            folds.append(_without_folds(target.quick([sample]), len(sample)))
        ratios = torch.tensor(distances, dtype=torch.float64) / denominator
        self.ratios[name], self.controls[name] = ratios, control / denominator
        self.moved[name] = ratios.mean() * draws.mean() / draws  # the score had the real draw been another one
        self.replicates[name] = ratios.mean() * torch.stack(folds).mean(0)
        self.details[name] = {"real_distance": denominator}

    def estimate(self, names: Sequence[str]) -> Estimate:
        """The mean over some encoders."""
        ratios, moved, replicates = (
            torch.stack([of[name] for name in names]).mean(0) for of in (self.ratios, self.moved, self.replicates)
        )
        value, real = ratios.mean().item(), moved.var().item()
        one = real / (1 - self.overlap)  # the variance that one real draw gives the score
        fake = ratios.var().item() if len(ratios) > 1 else one
        width = Z95 * math.sqrt(one / self.disjoint + fake / len(ratios)) / value if value > 0 else 0.0
        return Estimate(
            value=value,
            ci95=(value * math.exp(-width), value * math.exp(width)),
            control=sum(self.controls[name] for name in names) / len(names),
            replicates=tuple(replicates.tolist()),
        )


def _without_folds(quick: Callable[[Tensor], float], n: int) -> Float64[Tensor, " k"]:
    """Jackknife replicates of the distance of n rows in random order, relative to it."""
    fold, whole = torch.arange(n) % min(FOLDS, n), quick(torch.arange(n))
    if not whole > 0:
        return torch.ones(int(fold.max()) + 1, dtype=torch.float64)  # the very rows of the target
    without = [quick((fold != k).nonzero()[:, 0]) / whole for k in range(int(fold.max()) + 1)]
    return jackknife(1.0, torch.tensor(without, dtype=torch.float64))
