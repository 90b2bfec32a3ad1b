"""How sure a score is: replicates, intervals, chances, and the score over encoders that metrics return.

Replicates (see `irdm.metrics.score`) come from the jackknife over K random folds of the judged rows (Quenouille, 1956;
pseudo-values moved so that their mean is the score itself, not its bias-corrected value). An interval is about the
judged side, the real rows are given. A chance (`p_real`) counts both: the replicates of the judged rows and those of
the fresh real rows in their place.

Letters: n rows, k replicates or folds, e encoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeVar

import torch
from jaxtyping import Float64, Int64
from scipy import special
from torch import Tensor

from irdm.metrics.score import Direction, Estimate, Interval, Score, grouped
from irdm.ops.sampling import generator_for

FOLDS = 10
Key = TypeVar("Key")


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


def tightened(replicates: Float64[Tensor, " k"], quadratic: float) -> Float64[Tensor, " k"]:
    """Replicates of a squared distance, moved together until their variance is that of the distance.

    Of a statistic with a linear part of variance L and a degenerate quadratic one of variance Q the jackknife over k
    groups finds L + (2 + 1/(k - 1)) Q, of which 1 + 1/(k - 1) times Q is taken away; at most what leaves Q alone.

    Args:
        replicates: from the jackknife.
        quadratic: the variance Q.
    """
    k, found = len(replicates), standard_error(replicates) ** 2
    if not found > 0:
        return replicates
    twice, mean = 1 + 1 / (k - 1), replicates.mean()
    return mean + math.sqrt(max(1 / (1 + twice), 1 - twice * quadratic / found)) * (replicates - mean)


def fold_means(rows: Float64[Tensor, " n"], fold: Int64[Tensor, " n"]) -> Float64[Tensor, " k"]:
    """Replicates [k] of the mean of `rows`, by the jackknife over the folds."""
    count = int(fold.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, fold, rows.cpu())
    return jackknife(rows.mean().item(), (sums.sum() - sums) / (len(rows) - torch.bincount(fold, minlength=count)))


def student(freedom: float) -> float:
    """The two-sided 95% point of Student's t."""
    return float(special.stdtrit(freedom, 0.975))


def standard_error(replicates: Float64[Tensor, " k"]) -> float:
    """Of the score whose replicates these are."""
    return replicates.std().item() / math.sqrt(len(replicates))


def interval(replicates: Float64[Tensor, " k"]) -> Interval:
    """Student's 95% interval of the score whose replicates these are (at least two): (low, high)."""
    half = student(len(replicates) - 1) * standard_error(replicates)
    return replicates.mean().item() - half, replicates.mean().item() + half


def log_interval(value: float, variance: float, freedom: float) -> Interval:
    """Student's 95% interval of a positive number, on a log scale: (low, high), never negative.

    Args:
        value: the number.
        variance: of it, relative to its square.
        freedom: degrees of freedom of the variance.
    """
    # of a log-normal number with this relative error: the error itself where it is small, finite where it is not
    width = student(freedom) * math.sqrt(math.log1p(variance))
    return value * math.exp(-width), value * math.exp(width)


def together(*parts: tuple[float, float]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a sum of independent parts (Welch, Satterthwaite).

    Args:
        parts: standard error and degrees of freedom of each.
    """
    variance = sum(error**2 for error, _ in parts)
    spread = sum(error**4 / freedom for error, freedom in parts)
    return math.sqrt(variance), variance**2 / spread if spread > 0 else min(freedom for _, freedom in parts)


def chance(difference: float, error: float, freedom: float, direction: Direction = "real") -> float:
    """Probability that chance alone makes a difference at least as far on the bad side, by Student's t.

    Args:
        difference: of a score to what is expected.
        error: standard error of it.
        freedom: degrees of freedom of the error.
        direction: which side is bad: above for "lower", below for "higher", both for "real".
    """
    if not error > 0:
        return 1.0 if difference == 0 or (difference < 0) == (direction == "lower") and direction != "real" else 0.0
    t = difference / error
    if direction == "real":
        return float(2 * special.stdtr(freedom, -abs(t)))
    return float(special.stdtr(freedom, -t if direction == "lower" else t))


def holm(chances: Mapping[Key, float], weights: Mapping[Key, float] | None = None) -> dict[Key, float]:
    """p-values corrected for their number: all below 0.05 together err in at most 5% (Holm, 1979).

    Args:
        chances: p-values by name.
        weights: shares of the 5% that each may spend, summing to 1 or less; all alike if not given.
    """
    shares = weights or dict.fromkeys(chances, 1 / max(1, len(chances)))
    corrected: dict[Key, float] = {}
    left, most = sum(shares[name] for name in chances), 0.0
    for name in sorted(chances, key=lambda name: chances[name] / shares[name]):
        most = max(most, min(1.0, chances[name] * left / shares[name]))
        corrected[name], left = most, left - shares[name]
    return {name: corrected[name] for name in chances}


def worst(score: Score, first: Collection[str] = (), sure: float = 0.0) -> tuple[str, float] | None:
    """The encoder under which fresh real images would least often look as bad, and how often the worst of them would.

    The second is corrected for the number of encoders (Bonferroni's bound; it needs no independence). Of those named
    `first` where one has at most the chance `sure`. None when no encoder has a `p_real`.
    """
    known = {name: found.p_real for name, found in score.encoders.items() if found.p_real is not None}
    if not known:
        return None
    chances = {name: min(1.0, len(known) * p) for name, p in known.items()}
    those = [name for name in chances if name in first and chances[name] <= sure] or [*chances]
    name = min(those, key=known.__getitem__)
    return name, chances[name]


def bootstrap_interval(values: Float64[Tensor, " k"], seed: int, resamples: int = 2000) -> Interval:
    """The 95% percentile bootstrap interval of the mean of values (at least four): (low, high).

    The percentiles are moved outwards, as Student's t over the normal with the biased variance asks for (the expanded
    percentile interval of Hesterberg, 2015): the plain ones are too narrow for few values.
    """
    count = len(values)
    level = NormalDist().cdf(-math.sqrt(count / (count - 1)) * student(count - 1))
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
    controls: Mapping[str, Float64[Tensor, " k"] | float] | None = None,
    limits: tuple[float, float] = (-math.inf, math.inf),
    details: Mapping[str, Mapping[str, Any]] | None = None,
    means: bool = True,
    notes: Mapping[str, Any] | None = None,
) -> Score:
    """A score from the replicates of each encoder, with Student's intervals of their means.

    A score above 0 and without a bound has its interval on a log scale.

    Args:
        label: as in Score.
        direction: as in Score.
        says: as in Score.
        replicates: of each encoder, of the same rows.
        held_out: those that did not train the generator.
        controls: replicates of the same score of fresh real images, by encoder. A number alone where its error is not
            known; then neither is `p_real`.
        limits: between which the score must lie: intervals are cut there.
        details: notes of each encoder.
        means: whether encoders have a common scale.
        notes: as in Score.
    """
    low, high = limits

    def estimate(names: Sequence[str]) -> Estimate:
        rows = torch.stack([replicates[name] for name in names]).mean(0)
        value, ends = rows.mean().item(), interval(rows)
        if limits == (0.0, math.inf) and value > 0:
            ends = log_interval(value, (standard_error(rows) / value) ** 2, len(rows) - 1)
        # 0.0 is added to make -0.0 zero
        value, *ends = (min(max(x, low), high) + 0.0 for x in (value, *ends))
        found = Estimate(value=value, ci95=(ends[0], ends[1]), replicates=tuple(rows.tolist()))
        if controls is None:
            return found
        given = [torch.as_tensor(controls[name], dtype=torch.float64) for name in names]
        if any(real.ndim == 0 for real in given):
            return found.model_copy(update={"control": sum(real.mean().item() for real in given) / len(given)})
        real = torch.stack(given).mean(0)
        sides = [(standard_error(side), len(side) - 1) for side in (rows, real)]
        control = {"control": real.mean().item() + 0.0, "control_error": sides[1][0]}
        p_real = chance(value - control["control"], *together(*sides), direction)
        return found.model_copy(update=control | {"p_real": p_real})

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
