"""Exact MMD: the attraction is the mean kernel against a fresh real batch."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from irdm.distances.base import KernelConfig
from irdm.distances.pool import PoolConfig, PoolDistance
from irdm.ops.kernels import gaussian_mmd, mean_kernel
from irdm.ops.rows import Rows, sample_rows
from irdm.ops.sampling import generator_for


class ExactMMDConfig(KernelConfig, PoolConfig):
    """Squared MMD with a fresh real batch at each step."""

    kind: Literal["exact-mmd"] = "exact-mmd"

    constant_rows: PositiveInt = 100_000
    """Random real rows for the constant term, the mean kernel of the real data with itself."""

    def build(self) -> ExactMMD:
        """A distance without a reference: fit it, or load one."""
        return ExactMMD(self)


class ExactMMD(PoolDistance):
    """L = mean k(g, g') - 2 mean k(g, r) + k_rr, r a fresh real batch, averaged over bandwidths."""

    needs_bandwidth = True

    constant: Tensor

    def __init__(self, config: ExactMMDConfig) -> None:
        super().__init__(config, config.scale)
        self.config = config
        self._own("constant")

    def _fit(self, real: Rows, seed: int) -> None:
        super()._fit(real, seed)
        sample = sample_rows(real, self.config.constant_rows, generator_for(seed, "constant"))
        self.constant = mean_kernel(sample, self.config.gammas(float(self.sigma)))

    def _compare(self, fake: Float[Tensor, "n w"], step: int) -> Float[Tensor, ""]:
        real = self._draw(len(fake), step).to(fake)
        gammas = self.config.gammas(float(self.sigma))
        alpha = fake.new_full((len(gammas), len(real)), 1 / len(real))
        return gaussian_mmd(fake, real, alpha, gammas, self.constant.to(torch.float64))
