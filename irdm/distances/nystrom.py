"""Nystrom MMD: an exact repulsion within the batch, an attraction to all the real data through landmarks."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from irdm.distances.kernel import PairwiseConfig, PairwiseMMD
from irdm.distributed import Ranks
from irdm.ops.embedding import kernel_means, nystrom_coefficients
from irdm.ops.kmeans import kmeans
from irdm.ops.rows import Rows, row_blocks, sample_rows
from irdm.ops.sampling import generator_for
from irdm.progress import Meter


class NystromMMDConfig(PairwiseConfig):
    """Squared MMD with the Nystrom mean embedding of all the real data."""

    kind: Literal["nystrom-mmd"] = "nystrom-mmd"

    landmarks: PositiveInt = 4096
    """k-means centres that carry the real data; every real row is one when there are no more rows than this."""

    kmeans_iterations: NonNegativeInt = 20
    """Lloyd iterations."""

    kmeans_rows: PositiveInt = 200_000
    """Random real rows given to k-means."""

    def build(self) -> NystromMMD:
        """A distance without a reference: fit it, or load one."""
        return NystromMMD(self)


class NystromMMD(PairwiseMMD[NystromMMDConfig]):
    """L = mean k(g, g') - 2 mean_i k(g_i, Z) alpha + k_rr, alpha = (K_ZZ + 1e-6 I)^-1 mu, averaged over bandwidths.

    For the energy kernel the coefficients sum to 1 and leave an offset, which is constant and goes to k_rr.
    Source: arXiv 2607.02375. The value and the gradient come from one blocked pass (`irdm.ops.kernels.squared_mmd`).
    """

    Config = NystromMMDConfig
    owned = ("landmarks", "alpha", "constant")

    landmarks: Tensor
    alpha: Tensor

    def _fit(self, real: Rows, seed: int, ranks: Ranks) -> None:
        count, kernel = self.config.landmarks, self.kernel
        self.constant = self._mean_kernel(real, seed, ranks)
        if len(real) <= count:  # the mean embedding itself: alpha solves the system without a ridge
            self.landmarks = real[0 : len(real)]
            self.alpha = self.landmarks.new_full((len(kernel.gammas), len(real)), 1 / len(real))
            return
        pool = sample_rows(real, max(self.config.kmeans_rows, count), generator_for(seed, "k-means rows"))
        iterations = self.config.kmeans_iterations
        tick = Meter("k-means", iterations, "iterations", self.progress)
        start, share = generator_for(seed, "k-means centres"), ranks.share(len(pool))
        self.landmarks = kmeans(pool, count, start, iterations, tick=tick, share=share, total=ranks.sum)
        means = kernel_means(self.landmarks, row_blocks(real, share=ranks.share(len(real))), kernel, ranks.sum)
        alpha, offset = nystrom_coefficients(self.landmarks, means, kernel)
        self.alpha = alpha.to(self.landmarks)
        self.constant -= 2 * offset.mean()

    def _compare(self, fake: Float[Tensor, "n w"], step: int | None, ranks: Ranks) -> Float[Tensor, ""]:
        return self._squared_mmd(fake, self.landmarks, self.alpha, ranks)
