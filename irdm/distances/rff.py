"""RFF MMD: the kernel's mean embedding through random Fourier features."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt, field_validator
from torch import Tensor

from irdm.distances.kernel import MMD, KernelConfig
from irdm.distributed import Ranks
from irdm.ops.embedding import fourier_features
from irdm.ops.rows import Rows, row_blocks
from irdm.ops.sampling import generator_for


class RFFMMDConfig(KernelConfig):
    """Squared MMD between means of random Fourier features."""

    kind: Literal["rff-mmd"] = "rff-mmd"

    features: PositiveInt = 4096
    """Random features of each bandwidth."""

    @field_validator("kernel")
    @classmethod
    def _has_frequencies(cls, kernel: str) -> str:
        if kernel not in ("gaussian", "imq"):
            raise ValueError(
                "its random Fourier features have no useful gradient (Laplace's frequencies have no finite mean, the "
                "energy kernel has none); set this to gaussian or imq, or take kind nystrom-mmd or exact-mmd"
            )
        return kernel

    def build(self) -> RFFMMD:
        """A distance without a reference: fit it, or load one."""
        return RFFMMD(self)


class RFFMMD(MMD[RFFMMDConfig]):
    """L = |mean phi(g) - mean phi(r)|^2, phi(x) = sqrt(2/D) cos(xW + p), averaged over bandwidths.

    W is drawn from the kernel's spectral density (Gaussian or inverse multiquadric).

    Source: Rahimi and Recht, "Random features for large-scale kernel machines", 2007.
    """

    Config = RFFMMDConfig
    owned = ("frequencies", "phases", "means")

    frequencies: Tensor
    phases: Tensor
    means: Tensor

    def _fit(self, real: Rows, seed: int, ranks: Ranks) -> None:
        generator = generator_for(seed, "fourier features")
        count = self.config.features
        self.frequencies = self.kernel.frequencies(real.shape[1], count, generator).to(self.center)
        uniform = torch.rand(self.frequencies.shape[1], generator=generator)
        self.phases = (2 * math.pi * uniform).to(self.center)
        total = torch.zeros_like(self.phases, dtype=torch.float64)
        for block in row_blocks(real, share=ranks.share(len(real))):
            total += fourier_features(block, self.frequencies, self.phases, count).double().sum(dim=0)
        self.means = (ranks.sum(total) / len(real)).to(self.center)

    def _compare(self, fake: Float[Tensor, "n w"], step: int | None, ranks: Ranks) -> Float[Tensor, ""]:
        own = self._features(fake[ranks.share(len(fake))]).sum(dim=0, dtype=torch.float64)
        return (ranks.sum(own) / len(fake) - self.means.double()).square().sum() / len(self.config.bandwidths)

    def _own_kernel(self, rows: Tensor, ranks: Ranks) -> tuple[float, float]:
        features, n = self._features(rows).double() / math.sqrt(len(self.config.bandwidths)), len(rows)
        own = features.square().sum()
        return (own / n).item(), ((features.sum(dim=0).square().sum() - own) / max(n * (n - 1), 1)).item()

    def _features(self, rows: Tensor) -> Tensor:
        return fourier_features(rows, self.frequencies.to(rows), self.phases.to(rows), self.config.features)
