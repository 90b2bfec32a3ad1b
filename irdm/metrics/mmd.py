"""MMD ratio: squared MMD of a Gaussian kernel by random Fourier features (Rahimi and Recht, 2007; MMDr14).

Letters: n rows, d features, q random features, e encoders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from irdm.metrics.base import EvaluationConfig, Real, Sample, checked
from irdm.metrics.ratio import ratio_to_train
from irdm.ops.kernels import median_distance
from irdm.ops.sampling import generator_for, sample_indices

COARSE = 512  # random features that measure the spread over rows; the score itself uses all
BANDWIDTH_ROWS = 10_000
BLOCK = 2048


class FourierBank:
    """The mean embedding of one real sample: the mean of phi(x) = sqrt(2/q) cos(x W + b).

    W ~ N(0, 1/sigma^2), b ~ U[0, 2 pi), drawn on the CPU from `seed`; sigma is the median distance between real rows
    (10,000 of them at most, seeded).
    """

    def __init__(self, features: Mapping[str, Float[Tensor, "n _d"]], count: int, seed: int):
        """Embed the real rows with `count` random features.

        Raises ValueError naming an encoder with too few or non-finite rows, or whose rows are all the same.
        """
        self.dims = {name: rows.shape[-1] for name, rows in features.items()}
        self.count = count
        self.waves: dict[str, tuple[Tensor, Tensor]] = {}
        self.centers: dict[str, Tensor] = {}
        self.embedding: dict[str, Tensor] = {}
        for name, rows in checked(features, self.dims).items():
            self.centers[name] = center = rows.mean(0)
            chosen = sample_indices(len(rows), BANDWIDTH_ROWS, generator_for("metrics", "bandwidth", seed))
            sigma = median_distance(rows[chosen.to(rows.device)] - center)
            if not sigma > 0:
                raise ValueError(
                    f"Encoder '{name}': the median distance between real rows is 0; its features are constant."
                )
            generator = torch.Generator().manual_seed(seed)
            frequencies = torch.randn(self.dims[name], count, generator=generator) / sigma
            phases = torch.rand(count, generator=generator) * (2 * math.pi)
            self.waves[name] = frequencies.to(rows), phases.to(rows)
            self.embedding[name] = self._embed(name, rows, count)

    @property
    def names(self) -> tuple[str, ...]:
        """The encoders, in the order of `distances`."""
        return tuple(self.dims)

    def _embed(self, name: str, rows: Float[Tensor, "n d"], count: int) -> Float64[Tensor, " q"]:
        """The mean of sqrt(2) cos(x W + b): its squared norm still has to be divided by q."""
        frequencies, phases = (wave[..., :count] for wave in self.waves[name])
        blocks = (
            torch.addmm(phases, block - self.centers[name], frequencies).cos_().sum(0, dtype=torch.float64)
            for block in rows.split(BLOCK)
        )
        return torch.stack(list(blocks)).sum(0) * (math.sqrt(2) / len(rows))

    def distances(self, features: Mapping[str, Tensor], count: int | None = None) -> Float64[Tensor, " e"]:
        """Squared MMD (biased: the diagonal is in) to the bank by encoder, over the first `count` random features.

        Raises ValueError naming an encoder that is missing, of another width, or not finite.
        """
        count = min(count or self.count, self.count)
        rows = checked(features, self.dims)
        gaps = [self._embed(name, rows[name], count) - self.embedding[name][:count] for name in self.dims]
        return torch.stack([gap.square().mean().cpu() for gap in gaps])


def mmd_ratio(generated: Sample, real: Real, config: EvaluationConfig) -> dict:
    """MMD^2(gen, train) / MMD^2(val, train), arithmetic mean over encoders.

    The biased estimator depends on n: at unmatched sizes real data would not score 1.
    """
    bank = FourierBank(real.train.features, config.rff_features, config.rff_seed)
    return ratio_to_train(bank, generated, real, config, COARSE)
