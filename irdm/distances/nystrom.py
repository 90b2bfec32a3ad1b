"""Nystrom MMD: an exact repulsion within the batch, an attraction to all the real data through landmarks."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from irdm.distances.base import Distance, KernelConfig
from irdm.ops.kernels import gaussian_mmd, kernel_means, mean_kernel, nystrom_coefficients
from irdm.ops.kmeans import kmeans
from irdm.ops.rows import Rows, row_blocks, sample_rows
from irdm.ops.sampling import generator_for


class NystromMMDConfig(KernelConfig):
    """Squared MMD with the Nystrom mean embedding of all the real data."""

    kind: Literal["nystrom-mmd"] = "nystrom-mmd"

    landmarks: PositiveInt = 4096
    """k-means centres that carry the real data; every real row is one when there are no more rows than this."""

    kmeans_iterations: NonNegativeInt = 20
    """Lloyd iterations."""

    kmeans_rows: PositiveInt = 200_000
    """Random real rows given to k-means."""

    constant_rows: PositiveInt = 100_000
    """Random real rows for the constant term, the mean kernel of the real data with itself."""

    def build(self) -> NystromMMD:
        """A distance without a reference: fit it, or load one."""
        return NystromMMD(self)


class NystromMMD(Distance):
    """L = mean k(g, g') - 2 mean_i k(g_i, Z) alpha + k_rr, alpha = (K_ZZ + 1e-6 I)^-1 mu, averaged over bandwidths.

    Source: arXiv 2607.02375. The value and the gradient come from one blocked pass (`irdm.ops.kernels.gaussian_mmd`).
    """

    needs_bandwidth = True

    landmarks: Tensor
    alpha: Tensor
    constant: Tensor

    def __init__(self, config: NystromMMDConfig) -> None:
        super().__init__(config, config.scale)
        self.config = config
        self._own("landmarks", "alpha", "constant")

    def _fit(self, real: Rows, seed: int) -> None:
        gammas = self.config.gammas(float(self.sigma))
        count = self.config.landmarks
        if len(real) <= count:  # the mean embedding itself: alpha solves the system without a ridge
            self.landmarks = real[0 : len(real)]
            self.alpha = self.landmarks.new_full((len(gammas), len(real)), 1 / len(real))
        else:
            pool = sample_rows(real, max(self.config.kmeans_rows, count), generator_for(seed, "k-means rows"))
            self.landmarks = kmeans(pool, count, generator_for(seed, "k-means centres"), self.config.kmeans_iterations)
            means = kernel_means(self.landmarks, row_blocks(real), gammas)
            self.alpha = nystrom_coefficients(self.landmarks, means, gammas).to(self.landmarks)
        sample = sample_rows(real, self.config.constant_rows, generator_for(seed, "constant"))
        self.constant = mean_kernel(sample, gammas)

    def _compare(self, fake: Float[Tensor, "n w"], step: int) -> Float[Tensor, ""]:
        return gaussian_mmd(
            fake,
            self.landmarks.to(fake),
            self.alpha.to(fake),
            self.config.gammas(float(self.sigma)),
            self.constant.to(torch.float64),
        )
