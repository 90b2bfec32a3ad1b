"""How sure a score is: replicates, intervals, and the summary that every metric of a panel of encoders returns.

The contract of replicates. A score carries K numbers, its *replicates*: their mean is the score, and their standard
deviation over sqrt(K) is its standard error. They come either from K independent generated draws, or from the jackknife
over K random folds of the generated rows (Quenouille, 1956; pseudo-values moved so that their mean is the score itself,
not its bias-corrected value). Replicate k stands for the same rows under every encoder, and for the same noise or
prompts in two results of one protocol; so differences of replicates give the interval of a mean over encoders, and of
the difference of two generators (`irdm.compare`). All of it is about the generated side: the real rows are given.

Letters: n rows, k replicates or folds, e encoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from irdm.metrics.base import Direction
from irdm.ops.sampling import generator_for

FOLDS = 10
Interval = list[float]


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
    """Student's 95% interval of the score whose replicates these are (at least four): [low, high]."""
    half = student(len(replicates)) * replicates.std().item() / math.sqrt(len(replicates))
    return [replicates.mean().item() - half, replicates.mean().item() + half]


def bootstrap_interval(values: Float64[Tensor, " k"], seed: int, resamples: int = 2000) -> Interval:
    """The 95% percentile bootstrap interval of the mean of values (at least four): [low, high].

    The percentiles are moved outwards, as Student's t over the normal with the biased variance asks for (the expanded
    percentile interval of Hesterberg, 2015): the plain ones are too narrow for few values.
    """
    count = len(values)
    level = NormalDist().cdf(-math.sqrt(count / (count - 1)) * student(count))
    generator = generator_for("metrics", "bootstrap", seed)
    at_once = max(1, 1_000_000 // count)  # all draws would be resamples x k numbers
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    means = torch.cat([values[torch.randint(count, (size, count), generator=generator)].mean(1) for size in sizes])
    return torch.quantile(means, torch.tensor([level, 1 - level], dtype=torch.float64)).tolist()


def grouped(
    names: Sequence[str],
    held_out: Sequence[str],
    estimate: Callable[[list[int]], tuple[float | None, Interval | None]],
    replicates: Float64[Tensor, "k e"],
    controls: Sequence[float] | None,
) -> dict:
    """The arithmetic means over all, held-in and held-out encoders, and the encoders one by one.

    Args:
        names: encoders, in column order.
        held_out: those that did not train the generator.
        estimate: score and 95% interval of the mean over some columns; (None, None) for no columns.
        replicates: of each encoder's score.
        controls: the same score of fresh real images, by encoder, where there is one.
    """
    groups = {
        "mean": list(range(len(names))),
        "held_in": [i for i, name in enumerate(names) if name not in held_out],
        "held_out": [i for i, name in enumerate(names) if name in held_out],
    }
    result: dict = {group: estimate(columns)[0] for group, columns in groups.items()}
    result["ci95"] = estimate(groups["mean"])[1]
    result |= {f"{group}_ci95": estimate(groups[group])[1] for group in ("held_in", "held_out")}
    if controls is not None:
        result["real_control"] = sum(controls) / len(controls)
    result["per_encoder"] = {}
    for i, name in enumerate(names):
        value, ci95 = estimate([i])
        row = {"value": value, "ci95": ci95, "held_out": name in held_out, "replicates": replicates[:, i].tolist()}
        result["per_encoder"][name] = row if controls is None else row | {"real_control": controls[i]}
    return result


def panel_score(
    name: str,
    direction: Direction,
    replicates: Mapping[str, Float64[Tensor, " k"]],
    held_out: Sequence[str],
    controls: Mapping[str, float] | None = None,
    missing: Sequence[str] = (),
) -> dict:
    """What a metric of feature tables returns: `grouped` under its name, with Student's intervals of the replicates.

    `missing` names the encoders of a partial panel that are left out.
    """
    names = list(replicates)
    table = torch.stack([replicates[name] for name in names], dim=1)

    def estimate(columns: list[int]) -> tuple[float | None, Interval | None]:
        if not columns:
            return None, None
        means = table[:, columns].mean(1)
        return means.mean().item(), interval(means)

    values = None if controls is None else [controls[name] for name in names]
    head = {"name": name, "direction": direction, "missing": list(missing)}
    return head | grouped(names, held_out, estimate, table, values)
