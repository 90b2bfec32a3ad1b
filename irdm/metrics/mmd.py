"""MMD ratio: squared MMD of a Gaussian kernel by random Fourier features (Rahimi and Recht, 2007; MMDr14).

Letters: n rows, d features, q random features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from irdm.metrics.base import EvaluationConfig, Real, Sample, checked
from irdm.metrics.ratio import Bank, ratio_to_train
from irdm.ops.kernels import median_distance
from irdm.ops.sampling import generator_for, sample_indices

COARSE = 512  # random features that measure the spread over rows; the score itself uses all
BANDWIDTH_ROWS = 10_000
BLOCK = 2048


@dataclass(frozen=True)
class FourierTarget:
    """The mean embedding of one real sample: the mean of phi(x) = sqrt(2/q) cos(x W + b), less the factor 1/sqrt(q).

    W ~ N(0, 1/sigma^2), b ~ U[0, 2 pi), drawn on the CPU from `seed`; sigma is the median distance between real rows
    (10,000 of them at most, seeded).
    """

    center: Float[Tensor, " d"]
    frequencies: Float[Tensor, "d q"]
    phases: Float[Tensor, " q"]
    embedding: Float64[Tensor, " q"]

    @classmethod
    def of(cls, name: str, rows: Float[Tensor, "n d"], count: int, seed: int) -> FourierTarget:
        """Embed the real rows with `count` random features. Raises ValueError naming an encoder of constant rows."""
        center = rows.mean(0)
        chosen = sample_indices(len(rows), BANDWIDTH_ROWS, generator_for("metrics", "bandwidth", seed))
        sigma = median_distance(rows[chosen.to(rows.device)] - center)
        if not sigma > 0:
            raise ValueError(
                f"Encoder '{name}': the median distance between real rows is 0; its features are constant."
            )
        generator = torch.Generator().manual_seed(seed)
        frequencies = (torch.randn(rows.shape[1], count, generator=generator) / sigma).to(rows)
        phases = (torch.rand(count, generator=generator) * (2 * math.pi)).to(rows)
        return cls(center, frequencies, phases, _embed(rows, center, frequencies, phases))

    def distance(self, rows: Float[Tensor, "n d"], count: int | None = None) -> float:
        """Squared MMD (biased: the diagonal is in) over the first `count` random features (all, unless told)."""
        embedded = _embed(rows.to(self.center), self.center, self.frequencies[:, :count], self.phases[:count])
        return (embedded - self.embedding[:count]).square().mean().item()


def _embed(
    rows: Float[Tensor, "n d"],
    center: Float[Tensor, " d"],
    frequencies: Float[Tensor, "d q"],
    phases: Float[Tensor, " q"],
) -> Float64[Tensor, " q"]:
    """The mean of sqrt(2) cos(x W + b): its squared norm still has to be divided by q."""
    blocks = (
        torch.addmm(phases, block - center, frequencies).cos_().sum(0, dtype=torch.float64)
        for block in rows.split(BLOCK)
    )
    return torch.stack(list(blocks)).sum(0) * (math.sqrt(2) / len(rows))


class FourierBank(Bank):
    """The mean embedding of one real sample under each encoder; `distances` are squared MMDs."""

    def __init__(self, features: Mapping[str, Float[Tensor, "n _d"]], count: int, seed: int):
        """Embed the real rows. Raises ValueError naming an encoder with too few, non-finite or constant rows."""
        rows = checked(features, {name: table.shape[-1] for name, table in features.items()})
        super().__init__({name: FourierTarget.of(name, table, count, seed) for name, table in rows.items()})


def mmd_ratio(generated: Sample, real: Real, config: EvaluationConfig) -> dict:
    """MMD^2(gen, train) / MMD^2(val, train), arithmetic mean over encoders.

    The biased estimator depends on n: at unmatched sizes real data would not score 1.
    """
    bank = FourierBank(real.train.features, config.rff_features, config.rff_seed)
    return ratio_to_train(bank, generated, real, config, COARSE)
