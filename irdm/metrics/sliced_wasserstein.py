"""Sliced Wasserstein ratios: SW_2(gen, real) / SW_2(fresh real, real), by encoder (Feng et al. 2026, SW_r14).

Letters: n rows, d features, p directions, e encoders.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from irdm.metrics.base import MIN_ROWS, EvaluationConfig, Real, Sample, checked, stratified_rows, take
from irdm.metrics.ratio import ratio_to_train, summarise
from irdm.ops.sampling import generator_for
from irdm.ops.sliced import unit_directions, wasserstein2_squared_sorted

COARSE = 128  # directions that measure the spread over rows; the score itself uses all


class SlicedBank:
    """The sorted projections of one real sample, so that scoring a sample sorts only that sample.

    Features are centred on the real mean first: a large common mean would cost float32 digits. Directions are shared by
    all samples and drawn on the CPU.
    """

    def __init__(self, features: Mapping[str, Float[Tensor, "n _d"]], directions: int, seed: int):
        """Project and sort. Raises ValueError naming an encoder with too few, non-finite or constant rows."""
        self.dims = {name: rows.shape[-1] for name, rows in features.items()}
        features = checked(features, self.dims)
        self.means = {name: rows.mean(0) for name, rows in features.items()}
        self.directions = {
            name: unit_directions(self.dims[name], directions, seed).to(features[name]) for name in features
        }
        self.sorted = {name: self._project(name, rows, directions) for name, rows in features.items()}
        for name, projections in self.sorted.items():
            if torch.equal(projections[0], projections[-1]):
                raise ValueError(f"Encoder '{name}' gives every real image the same features; take it out or refit it.")

    @property
    def names(self) -> tuple[str, ...]:
        """The encoders, in the order of `distances`."""
        return tuple(self.dims)

    def _project(self, name: str, rows: Float[Tensor, "n d"], count: int | None) -> Float[Tensor, "n p"]:
        projections = self.directions[name][:, :count].T @ (rows - self.means[name]).T
        return projections.sort(dim=1).values.T.contiguous()  # sorting contiguous rows is three times as fast

    def distances(self, features: Mapping[str, Tensor], count: int | None = None) -> Float64[Tensor, " e"]:
        """SW_2 to the bank by encoder, over the first `count` directions (all of them unless told); any row count.

        SW_2 = sqrt of the mean over directions of the squared W_2 of the projections. Raises ValueError naming an
        encoder that is missing, of another width, or not finite.
        """
        rows = checked(features, self.dims)
        squared = [
            wasserstein2_squared_sorted(self._project(name, rows[name], count), self.sorted[name][:, :count]).mean()
            for name in self.dims
        ]
        return torch.stack([value.double().cpu() for value in squared]).sqrt()


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
