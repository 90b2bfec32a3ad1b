"""Sliced Wasserstein ratios: SW_2(gen, real) / SW_2(fresh real, real), by encoder (Feng et al. 2026, SW_r14).

Letters: n rows, d features, p directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from irdm.metrics.base import MIN_ROWS, EvaluationConfig, Real, Sample, checked, stratified_rows, take
from irdm.metrics.ratio import Bank, ratio_to_train, summarise
from irdm.ops.sampling import generator_for
from irdm.ops.sliced import unit_directions, wasserstein2_squared_sorted

COARSE = 128  # directions that measure the spread over rows; the score itself uses all


@dataclass(frozen=True)
class SlicedTarget:
    """The sorted projections of one real sample, so that scoring a sample sorts only that sample.

    Features are centred on the real mean first: a large common mean would cost float32 digits. Directions are shared by
    all samples and drawn on the CPU.
    """

    center: Float[Tensor, " d"]
    directions: Float[Tensor, "d p"]
    sorted: Float[Tensor, "n p"]

    @classmethod
    def of(cls, name: str, rows: Float[Tensor, "n d"], directions: int, seed: int) -> SlicedTarget:
        """Project and sort the real rows. Raises ValueError naming the encoder `name` when they are all the same."""
        center = rows.mean(0)
        unit = unit_directions(rows.shape[1], directions, seed).to(rows)
        projections = _sorted_projections(rows - center, unit)
        if torch.equal(projections[0], projections[-1]):
            raise ValueError(f"Encoder '{name}' gives every real image the same features; take it out or refit it.")
        return cls(center, unit, projections)

    def distance(self, rows: Float[Tensor, "n d"], count: int | None = None) -> float:
        """SW_2 = sqrt of the mean over the first `count` directions (all, unless told) of the squared W_2."""
        projections = _sorted_projections(rows.to(self.center) - self.center, self.directions[:, :count])
        return math.sqrt(wasserstein2_squared_sorted(projections, self.sorted[:, :count]).mean().item())


def _sorted_projections(rows: Float[Tensor, "n d"], directions: Float[Tensor, "d p"]) -> Float[Tensor, "n p"]:
    return (directions.T @ rows.T).sort(dim=1).values.T.contiguous()  # sorting contiguous rows is three times as fast


class SlicedBank(Bank):
    """The sorted projections of one real sample under each encoder; `distances` are SW_2."""

    def __init__(self, features: Mapping[str, Float[Tensor, "n _d"]], directions: int, seed: int):
        """Project and sort. Raises ValueError naming an encoder with too few, non-finite or constant rows."""
        rows = checked(features, {name: table.shape[-1] for name, table in features.items()})
        super().__init__({name: SlicedTarget.of(name, table, directions, seed) for name, table in rows.items()})


def sw_ratio(generated: Sample, real: Real, config: EvaluationConfig) -> dict:
    """SW_2(gen, train) / SW_2(val, train): mean over replicates, which estimates the ratio of one draw of that size.

    The mean of SW_2 and not the root of the mean square: the published score is SW_2 of one draw, and the mean over
    replicates is unbiased for its expectation, whatever their number. Memorised training images score BELOW 1 here.
    """
    bank = SlicedBank(real.train.features, config.directions, config.seed)
    return ratio_to_train(bank, generated, real, config, COARSE)


def sw_ratio_unseen(generated: Sample, real: Real, config: EvaluationConfig) -> dict:
    """SW_2(gen, test) / SW_2(train draw, test) with draws of one size: memorising cannot push it below 1.

    The denominator is the mean over `unseen_draws` draws from train; at most half of train, so that they differ.
    """
    n = min(len(real.val), len(real.train) // 2)
    if n < MIN_ROWS:
        raise ValueError(
            f"Got {len(real.train)} train rows; sw_ratio_unseen needs at least {2 * MIN_ROWS} to draw from."
        )
    rng = generator_for("metrics", "unseen", config.seed)
    bank = SlicedBank(real.test.features, config.directions, config.seed)

    def distances(features: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        return bank.distances(take(features, stratified_rows(labels, n, rng)))

    draws = torch.stack([distances(real.train.features, real.train.labels) for _ in range(config.unseen_draws)])
    size = len(real.val)
    drawn = zip(generated.replicates(size), generated.labels.split(size), strict=True)
    replicates = torch.stack([distances(features, labels) for features, labels in drawn])
    return summarise(bank.names, real.held_out, replicates, draws, n / len(real.train))
