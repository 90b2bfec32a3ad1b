"""What the MMDs have in common: the kernel, its bandwidths, and the squared MMD through it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from annotated_types import MinLen
from pydantic import PositiveInt, field_validator
from torch import Tensor

from irdm.distances.base import Distance
from irdm.distances.config import DistanceConfig, Factor
from irdm.distributed import Ranks
from irdm.ops.kernels import mean_kernel, squared_mmd
from irdm.ops.radial import KERNELS, Energy, RadialKernel
from irdm.ops.rows import Rows, sample_rows
from irdm.ops.sampling import generator_for


class KernelConfig(DistanceConfig):
    """Which kernel, at which bandwidths."""

    kernel: Literal["gaussian", "laplace", "imq", "energy"] = "gaussian"
    """exp(-r^2 / (2 sigma^2)), exp(-r / sigma), (1 + r^2 / (2 sigma^2))^(-1/2), or -r, which has no bandwidth."""

    scale: Factor = 1.0
    """Factor on the median distance that gives the bandwidth sigma; below 1 is a cold, sharper kernel."""

    bandwidths: Annotated[tuple[Factor, ...], MinLen(1)] = (1.0,)
    """Multiples of sigma; the kernels are averaged. For the Gaussian, ratios of 2 cost one exponential for all."""

    @field_validator("bandwidths")
    @classmethod
    def _energy_has_none(cls, bandwidths: tuple[float, ...], info: Any) -> tuple[float, ...]:
        if info.data.get("kernel") == "energy" and bandwidths != (1.0,):
            raise ValueError("the energy kernel has no bandwidth; set this to 1, or take another kernel")
        return bandwidths

    def at(self, sigma: float) -> RadialKernel:
        """The kernel at the bandwidths h sigma."""
        if self.kernel == "energy":
            return Energy()
        return KERNELS[self.kernel]([1 / (2 * (multiple * sigma) ** 2) for multiple in self.bandwidths])


class PairwiseConfig(KernelConfig):
    """What the MMDs with an exact repulsion have in common."""

    repulsion: Literal["biased", "unbiased"] = "biased"
    """Mean kernel over all n^2 pairs of generated rows, or without the n pairs of a row with itself, over n (n - 1)."""

    constant_rows: PositiveInt = 100_000
    """Random real rows for the constant term, the mean kernel of the real data with itself."""


K = TypeVar("K", bound=KernelConfig)
P = TypeVar("P", bound=PairwiseConfig)


class MMD(Distance[K]):
    """L = |mean of k(g, .) - mean of k(r, .)|^2, whose bandwidth sigma is `scale` times the median distance."""

    @property
    def kernel(self) -> RadialKernel:
        """The kernel at the bandwidths of the reference."""
        return self.config.at(float(self.sigma))

    @property
    def _scale(self) -> float:
        return self.config.scale

    @property
    def _needs_bandwidth(self) -> bool:
        return self.config.kernel != "energy"

    @property
    def _unbiased(self) -> bool:
        """Whether a generated row does not repel itself."""
        return False

    def _own_kernel(self, rows: Tensor, ranks: Ranks) -> tuple[float, float]:
        """Mean k(x, x), and the mean kernel of two different ones, of joint rows as L sees them."""
        return self.kernel.diagonal, ranks.sum(mean_kernel(rows, self.kernel, unbiased=True, part=ranks.part)).item()


class PairwiseMMD(MMD[P]):
    """L = mean k(g, g') - 2 mean_i k(g_i, Z) alpha + k_rr, averaged over bandwidths, whatever Z and alpha are.

    Unbiased repulsion makes L an unbiased estimate, so that it dips below 0 near its minimum; with the biased one L
    exceeds it by (k(x, x) - mean k(g, g')) / n. k_rr keeps its diagonal: the real rows are the population.
    """

    constant: Tensor

    @property
    def _unbiased(self) -> bool:
        return self.config.repulsion == "unbiased"

    def _mean_kernel(self, real: Rows, seed: int, ranks: Ranks) -> Tensor:
        """k_rr, from at most `constant_rows` random rows."""
        sample = sample_rows(real, self.config.constant_rows, generator_for(seed, "constant"))
        return ranks.sum(mean_kernel(sample, self.kernel, part=ranks.part))

    def _squared_mmd(self, fake: Tensor, points: Tensor, alpha: Tensor, ranks: Ranks) -> Tensor:
        points, alpha, constant = points.to(fake), alpha.to(fake), self.constant.double()
        unbiased, part = self._unbiased, ranks.part
        return ranks.sum(squared_mmd(fake, points, alpha, self.kernel, constant, unbiased=unbiased, part=part))
