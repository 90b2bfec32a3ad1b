"""Frechet distance: squared 2-Wasserstein between the Gaussians with the same moments."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from irdm.distances.base import Distance
from irdm.distances.config import DistanceConfig
from irdm.distributed import Ranks
from irdm.ops.gaussian import frechet_distance, moments, streaming_moments, symmetric_root
from irdm.ops.rows import Rows, row_blocks


class FrechetConfig(DistanceConfig):
    """Frechet distance between the features' Gaussians."""

    kind: Literal["frechet"] = "frechet"

    jitter: PositiveFloat = 1e-6
    """Added to the generated variances inside the matrix root, so that fewer rows than dimensions have a gradient."""

    def build(self) -> Frechet:
        """A distance without a reference: fit it, or load one."""
        return Frechet(self)


class Frechet(Distance[FrechetConfig]):
    """L = |m_g - m_r|^2 + tr S_g + tr S_r - 2 tr (S_r^1/2 (S_g + jitter I) S_r^1/2)^1/2.

    Unbiased covariances, all in float64. A generated batch needs two rows. With fewer rows than dimensions the value is
    the distance of the batch's own singular Gaussian, biased upwards as every small-sample Frechet distance is.
    """

    Config = FrechetConfig
    owned = ("mean", "covariance", "root")

    mean: Tensor
    covariance: Tensor
    root: Tensor

    def _fit(self, real: Rows, seed: int, ranks: Ranks) -> None:
        self.mean, self.covariance = streaming_moments(row_blocks(real, share=ranks.share(len(real))), ranks.sum)
        self.root = symmetric_root(self.covariance)

    def _compare(self, fake: Float[Tensor, "n w"], step: int | None, ranks: Ranks) -> Float[Tensor, ""]:
        mean, covariance = moments(fake, ranks.share(len(fake)), ranks.sum)
        reference = (buffer.to(mean) for buffer in (self.mean, self.covariance, self.root))
        return frechet_distance(mean, covariance, *reference, jitter=self.config.jitter)
