"""RFF MMD: the kernel's mean embedding through random Fourier features."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from irdm.distances.base import Distance, KernelConfig
from irdm.ops.kernels import fourier_features
from irdm.ops.rows import Rows, row_blocks
from irdm.ops.sampling import generator_for


class RFFMMDConfig(KernelConfig):
    """Squared MMD between means of random Fourier features."""

    kind: Literal["rff-mmd"] = "rff-mmd"

    features: PositiveInt = 4096
    """Random features of each bandwidth."""

    def build(self) -> RFFMMD:
        """A distance without a reference: fit it, or load one."""
        return RFFMMD(self)


class RFFMMD(Distance):
    """L = |mean phi(g) - mean phi(r)|^2, phi(x) = sqrt(2/D) cos(xW + p), averaged over bandwidths.

    Source: Rahimi and Recht, "Random features for large-scale kernel machines", 2007.
    """

    needs_bandwidth = True

    frequencies: Tensor
    phases: Tensor
    means: Tensor

    def __init__(self, config: RFFMMDConfig) -> None:
        super().__init__(config, config.scale)
        self.config = config
        self._own("frequencies", "phases", "means")

    def _fit(self, real: Rows, seed: int) -> None:
        generator = generator_for(seed, "fourier features")
        width, count = real.shape[1], self.config.features
        sigmas = [multiple * float(self.sigma) for multiple in self.config.bandwidths]
        normal = torch.cat([torch.randn(width, count, generator=generator) / sigma for sigma in sigmas], dim=1)
        uniform = 2 * math.pi * torch.rand(count * len(sigmas), generator=generator)
        self.frequencies, self.phases = normal.to(self.center), uniform.to(self.center)
        total = torch.zeros_like(self.phases, dtype=torch.float64)
        for block in row_blocks(real):
            total += fourier_features(block, self.frequencies, self.phases, count).double().sum(dim=0)
        self.means = (total / len(real)).to(self.center)

    def _compare(self, fake: Float[Tensor, "n w"], step: int) -> Float[Tensor, ""]:
        features = fourier_features(fake, self.frequencies.to(fake), self.phases.to(fake), self.config.features)
        return (features.mean(dim=0) - self.means.to(fake)).square().sum() / len(self.config.bandwidths)
