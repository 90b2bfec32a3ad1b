"""Distance of generated rows to real rows over the distance of fresh real rows to the same: 1 is as good as real.

The interval. Let V be the variance of the distance of ONE real draw of n rows. A row bootstrap cannot give it: at the
null (a real draw against real data) the distance is a degenerate statistic, for which the bootstrap is inconsistent,
and the duplicated rows of a resample inflate the distance itself. Instead real draws of the true size n are made
WITHOUT replacement from a pool of P real rows. Overlap makes them vary less than independent draws: by 1 - (n/P)^2 for
the quadratic part of the statistic, 1 - n/P for its linear part. Dividing by 1 - n/P covers both, and is wide for the
first. With the spread of the generated replicates this gives the variance of the ratio (delta method); the interval is
normal on a log scale. Rows are shared by encoders, so the interval of a mean over encoders counts their correlation. It
is conditional on the target rows (the train split, or the test split for the unseen ratio).

Letters: r generated replicates, b real draws, e encoders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from irdm.metrics.base import EvaluationConfig, Real, Sample, checked, stratified_rows, take
from irdm.metrics.intervals import grouped
from irdm.ops.sampling import generator_for

Z95 = 1.96


@runtime_checkable
class Target(Protocol):
    """One real sample under one encoder, prepared once, as a dataclass of tensors: sorted projections, an embedding."""

    @property
    def center(self) -> Tensor:
        """The mean [d] of the real rows."""
        ...

    def distance(self, rows: Float[Tensor, "n d"], count: int | None = None) -> float:
        """Distance of a sample to the real one; `count` uses only the first directions or random features."""
        ...


class Bank:
    """A target for each encoder."""

    def __init__(self, targets: Mapping[str, Target]):
        self.targets = dict(targets)
        self.dims = {name: len(target.center) for name, target in self.targets.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The encoders, in the order of `distances`."""
        return tuple(self.targets)

    def distances(self, features: Mapping[str, Tensor], count: int | None = None) -> Float64[Tensor, " e"]:
        """Distance of a sample of any size by encoder; `count` uses only the first directions or random features.

        Raises ValueError naming an encoder that is missing, of another width, or not finite.
        """
        rows = checked(features, self.dims)
        found = [target.distance(rows[name], count) for name, target in self.targets.items()]
        return torch.tensor(found, dtype=torch.float64)


def ratio_to_train(bank: Bank, generated: Sample, real: Real, config: EvaluationConfig, coarse: int) -> dict:
    """Distance to train of generated rows over that of val; `real_control` puts test in the place of generated.

    Val, test and each generated replicate have the same number of rows. The real draws behind the interval come from
    val and test together and need only `coarse` directions or features.

    Raises ValueError for unmatched sizes, a missing encoder or features that are not finite.
    """
    n = len(real.val)
    if len(real.test) != n:
        raise ValueError(f"Got {n} val and {len(real.test)} test rows; a distance to real depends on n, so match them.")
    if missing := set(bank.names) - (set(real.val.features) & set(real.test.features)):
        raise ValueError(f"The encoders {sorted(missing)} have no features of val or test; embed with all of them.")
    pool = {name: torch.cat([real.val.features[name], real.test.features[name]]) for name in bank.names}
    labels = torch.cat([real.val.labels, real.test.labels])
    rng = generator_for("metrics", "ratio", config.seed)
    draws = (take(pool, stratified_rows(labels, n, rng)) for _ in range(config.resamples))
    return summarise(
        bank.names,
        real.held_out,
        torch.stack([bank.distances(features) for features in generated.replicates(n)]),
        torch.stack([bank.distances(features, coarse) for features in draws]),
        n / len(labels),
        denominator=bank.distances(real.val.features),
        control=bank.distances(real.test.features),
    )


def summarise(
    names: Sequence[str],
    held_out: Sequence[str],
    generated: Float64[Tensor, "r e"],
    draws: Float64[Tensor, "b e"],
    overlap: float,
    *,
    denominator: Float64[Tensor, " e"] | None = None,
    control: Float64[Tensor, " e"] | None = None,
    fresh: int = 1,
    replicates: Float64[Tensor, "k e"] | None = None,
) -> dict:
    """Ratios by encoder and their arithmetic means over all, held-in and held-out encoders, with 95% intervals.

    Args:
        names: encoders, in column order.
        held_out: those that did not train the generator.
        generated: distances of the generated replicates.
        draws: distances of real draws that share a fraction `overlap` = n/P of a pool.
        overlap: that fraction, below 1.
        denominator: distances of the fresh real draw; without it the mean of `draws` is the denominator.
        control: distances of a second fresh real draw, reported over the same denominator.
        fresh: disjoint real draws whose mean the denominator is.
        replicates: of the ratios, for comparing two results; None takes the ratios of the generated replicates.

    A group without encoders gets null. Raises ValueError when fresh real rows are at distance 0.
    """
    # A mean of b overlapping draws keeps the pool's own luck, overlap/(1 - overlap), and 1/b of the rest.
    factor = overlap / (1 - overlap) + 1 / len(draws) if denominator is None else 1 / (1 - overlap) / fresh
    denominator = draws.mean(0) if denominator is None else denominator
    for name, distance in zip(names, denominator.tolist(), strict=True):
        if not distance > 0:
            raise ValueError(f"Encoder '{name}': fresh real rows lie at distance {distance}, expected above 0.")
    ratios = generated / denominator
    moved = ratios.mean(0) * draws.mean(0) / draws  # the score had the real draw been another one

    def interval(columns: list[int]) -> tuple[float | None, list[float] | None]:
        if not columns:
            return None, None
        value = ratios[:, columns].mean().item()
        real = moved[:, columns].mean(1).var().item()
        fake = ratios[:, columns].mean(1).var().item() if len(ratios) > 1 else real / (1 - overlap)  # as a real draw
        width = Z95 * math.sqrt(factor * real + fake / len(ratios)) / value if value > 0 else 0.0
        return value, [value * math.exp(-width), value * math.exp(width)]

    controls = None if control is None else (control / denominator).tolist()
    result = grouped(names, held_out, interval, ratios if replicates is None else replicates, controls)
    for name, distance in zip(names, denominator.tolist(), strict=True):
        result["per_encoder"][name]["real_distance"] = distance
    return result
