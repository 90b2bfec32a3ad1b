"""Exact MMD: the attraction is the mean kernel against a fresh real batch."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from irdm.distances.kernel import PairwiseConfig, PairwiseMMD
from irdm.distances.pool import PoolConfig
from irdm.distributed import Ranks
from irdm.ops.rows import Rows


class ExactMMDConfig(PairwiseConfig, PoolConfig):
    """Squared MMD with a fresh real batch at each step."""

    kind: Literal["exact-mmd"] = "exact-mmd"

    def build(self) -> ExactMMD:
        """A distance without a reference: fit it, or load one."""
        return ExactMMD(self)


class ExactMMD(PairwiseMMD[ExactMMDConfig]):
    """L = mean k(g, g') - 2 mean k(g, r) + k_rr, r a fresh real batch, averaged over bandwidths."""

    Config = ExactMMDConfig
    owned = ("pool", "constant")

    pool: Tensor

    def _fit(self, real: Rows, seed: int, ranks: Ranks) -> None:
        self.pool = self.config.keep(real, seed)
        self.constant = self._mean_kernel(real, seed, ranks)

    def _compare(self, fake: Float[Tensor, "n w"], step: int | None, ranks: Ranks) -> Float[Tensor, ""]:
        real = self.config.draw(self.pool, len(fake), self.seed, step)
        return self._squared_mmd(fake, real, real.new_full((len(self.kernel.gammas), len(real)), 1 / len(real)), ranks)
