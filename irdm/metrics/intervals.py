"""How sure a score is: replicates, their intervals, and the score over encoders that metrics return.

Replicates (see `irdm.metrics.score`) come from the jackknife over K random folds of the generated rows (Quenouille,
1956; pseudo-values moved so that their mean is the score itself, not its bias-corrected value). All of it is about the
generated side: the real rows are given.

Letters: n rows, k replicates or folds, e encoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from irdm.metrics.score import Direction, Estimate, Interval, Score, grouped
from irdm.ops.sampling import generator_for

FOLDS = 10


def folds(n: int, seed: int, count: int = FOLDS) -> Int64[Tensor, " n"]:
    """The fold, 0 to min(count, n) - 1, of each of n rows: random, since files may come in the order of their classes.

    The sizes differ by at most one. The same n and seed give the same folds, whatever the encoder and the metric.
    """
    return torch.randperm(n, generator=generator_for("metrics", "folds", seed)) % min(count, n)


def jackknife(value: float, without: Float64[Tensor, " k"]) -> Float64[Tensor, " k"]:
    """Replicates [k] of a score from its values without each fold in turn: value + (k - 1) (mean(without) - without).

    Their sd over sqrt(k) is the delete-a-group jackknife's standard error.
    """
    return value + (len(without) - 1) * (without.mean() - without)


def fold_means(rows: Float64[Tensor, " n"], fold: Int64[Tensor, " n"]) -> Float64[Tensor, " k"]:
    """Replicates [k] of the mean of `rows`, by the jackknife over the folds."""
    count = int(fold.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, fold, rows.cpu())
    return jackknife(rows.mean().item(), (sums.sum() - sums) / (len(rows) - torch.bincount(fold, minlength=count)))


def student(replicates: int) -> float:
    """The two-sided 95% point of Student's t with `replicates` - 1 degrees of freedom, at least 3.

    By the expansion in 1/freedom (Abramowitz and Stegun 26.7.5): within 1% from 3 degrees of freedom, 0.1% from 5.
    """
    freedom = replicates - 1
    assert freedom >= 3, f"{replicates} replicates"
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def interval(replicates: Float64[Tensor, " k"]) -> Interval:
    """Student's 95% interval of the score whose replicates these are (at least four): (low, high)."""
    half = student(len(replicates)) * replicates.std().item() / math.sqrt(len(replicates))
    return replicates.mean().item() - half, replicates.mean().item() + half


def bootstrap_interval(values: Float64[Tensor, " k"], seed: int, resamples: int = 2000) -> Interval:
    """The 95% percentile bootstrap interval of the mean of values (at least four): (low, high).

    The percentiles are moved outwards, as Student's t over the normal with the biased variance asks for (the expanded
    percentile interval of Hesterberg, 2015): the plain ones are too narrow for few values.
    """
    count = len(values)
    level = NormalDist().cdf(-math.sqrt(count / (count - 1)) * student(count))
    generator = generator_for("metrics", "bootstrap", seed)
    at_once = max(1, 1_000_000 // count)  # all draws would be resamples x k numbers
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = torch.cat([values[torch.randint(count, (size, count), generator=generator)].mean(1) for size in sizes])
    low, high = torch.quantile(means, torch.tensor([level, 1 - level], dtype=torch.float64)).tolist()
    return low, high


def score_of(
    label: str,
    direction: Direction,
    says: str,
    replicates: Mapping[str, Float64[Tensor, " k"]],
    held_out: Sequence[str],
    *,
    controls: Mapping[str, float] | None = None,
    limits: tuple[float, float] = (-math.inf, math.inf),
    details: Mapping[str, Mapping[str, Any]] | None = None,
    means: bool = True,
    notes: Mapping[str, Any] | None = None,
) -> Score:
    """A score from the replicates of each encoder, with Student's intervals of their means.

    Args:
        label: as in Score.
        direction: as in Score.
        says: as in Score.
        replicates: of each encoder, of the same rows.
        held_out: those that did not train the generator.
        controls: the same score of fresh real images, by encoder.
        limits: between which the score must lie: intervals are cut there.
        details: notes of each encoder.
        means: whether encoders have a common scale.
        notes: as in Score.
    """
    low, high = limits

    def estimate(names: Sequence[str]) -> Estimate:
        rows = torch.stack([replicates[name] for name in names]).mean(0)
        control = None if controls is None else sum(controls[name] for name in names) / len(names)
        # 0.0 is added to make -0.0 zero
        value, *ends = (min(max(x, low), high) + 0.0 for x in (rows.mean().item(), *interval(rows)))
        return Estimate(value=value, ci95=(ends[0], ends[1]), control=control, replicates=tuple(rows.tolist()))

    return over_encoders(label, direction, says, list(replicates), held_out, estimate, details, means, notes)


def over_encoders(
    label: str,
    direction: Direction,
    says: str,
    names: Sequence[str],
    held_out: Sequence[str],
    estimate: Callable[[Sequence[str]], Estimate],
    details: Mapping[str, Mapping[str, Any]] | None = None,
    means: bool = True,
    notes: Mapping[str, Any] | None = None,
) -> Score:
    """A score from what estimates the mean over some of the encoders: over all, each group and each alone."""
    encoders = {name: estimate([name]) for name in names}
    for name, found in (details or {}).items():
        encoders[name] = encoders[name].model_copy(update={"notes": dict(found)})
    groups = {group: estimate(members) for group, members in grouped(names, held_out).items()} if means else {}
    return Score(
        label=label,
        direction=direction,
        says=says,
        mean=groups.get("mean"),
        held_in=groups.get("held_in"),
        held_out=groups.get("held_out"),
        encoders=encoders,
        notes=dict(notes or {}),
    )
