"""Radial kernels k(x, y) = f(|x - y|^2), one small object each: values, slopes for the gradient, random frequencies.

A kernel holds several bandwidths, gamma_b = 1 / (2 sigma_b^2); whoever uses it takes their mean. The blocked code makes
t = -gamma |x - y|^2 <= 0 for the smallest gamma (the widest kernel, `base`) in one matrix product; everything here
starts from a block of those, works in place, and reaches the other bandwidths through the ratio gamma_b / base.

Dimension letters: n, m rows of the two sides of a block; d features; f random frequencies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Block = Float[Tensor, "n m"]

_MOST_SQUARINGS = 4  # a Gaussian is taken from its wider neighbour by at most this many squarings


class RadialKernel(ABC):
    """One shape of kernel at the bandwidths `gammas`.

    Raises:
        ValueError: when there is no bandwidth, or one that is not positive and finite.
    """

    diagonal = 1.0
    """k(x, x)."""

    definite = True
    """Positive definite; otherwise only on coefficients that sum to zero, where adding a constant changes nothing."""

    def __init__(self, gammas: Sequence[float]) -> None:
        if not gammas or not all(0 < gamma < math.inf for gamma in gammas):
            raise ValueError(f"Got gammas {list(gammas)}, expected at least one, each positive and finite.")
        self.gammas = tuple(gammas)
        self.base = min(self.gammas)

    def prepare(self, t: Block) -> Block:
        """What all bandwidths share, computed once a block, in place."""
        return t

    def values(self, prepared: Block, out: Block) -> Iterator[tuple[int, float, Block]]:
        """(b, gamma_b / base, k_b) for every bandwidth, each k_b in `out`, where the next one overwrites it."""
        for b, gamma in enumerate(self.gammas):
            yield b, gamma / self.base, self.value(prepared, gamma / self.base, out)

    @abstractmethod
    def value(self, prepared: Block, ratio: float, out: Block) -> Block:
        """k at one bandwidth, in `out`."""

    @abstractmethod
    def slope(self, value: Block, prepared: Block, ratio: float) -> Block:
        """s = -(1 / gamma) dk / d|x - y|^2, made from `value` in place; 0 where x = y even if k has a kink there."""

    def matrices(self, distances: Block) -> Iterator[tuple[int, Block]]:
        """(b, k_b) of squared distances; each matrix is overwritten by the next."""
        prepared = self.prepare(distances * -self.base)
        for b, _, value in self.values(prepared, torch.empty_like(prepared)):
            yield b, value

    def frequencies(self, dim: int, count: int, generator: torch.Generator) -> Float[Tensor, "d f"]:
        """`count` columns w for each bandwidth with E cos(w.(x - y)) = k_b(x, y), on the CPU: [dim, b * count].

        The kernel is a mixture of Gaussians, so w is a normal vector times a spread.

        Raises:
            ValueError: for a kernel whose frequencies are of no use: Laplace's are Cauchy, without a mean, so that the
                gradient of its random features has no finite variance; the energy kernel has no spectral density.
        """
        return torch.cat(
            [
                torch.randn(dim, count, generator=generator) * math.sqrt(2 * gamma) * self._spread(count, generator)
                for gamma in self.gammas
            ],
            dim=1,
        )

    def _spread(self, count: int, generator: torch.Generator) -> Tensor | float:
        """The random size [count] of frequencies at sigma = 1."""
        raise ValueError(f"The {type(self).__name__} kernel has no random frequencies with a finite mean.")


class Gaussian(RadialKernel):
    """k = exp(-|x - y|^2 / (2 sigma^2)). Bandwidths in ratio 2 need one exponential between them."""

    def __init__(self, gammas: Sequence[float]) -> None:
        super().__init__(gammas)
        self._plan = _plan(self.gammas)

    def values(self, prepared: Block, out: Block) -> Iterator[tuple[int, float, Block]]:
        """From wide to narrow, by squaring the one before where that gives the next."""
        for b, ratio, squarings in self._plan:
            if squarings:
                for _ in range(squarings):
                    out.mul_(out)
            else:
                self.value(prepared, ratio, out)
            yield b, ratio, out

    def value(self, prepared: Block, ratio: float, out: Block) -> Block:
        if ratio == 1:
            return torch.exp(prepared, out=out)
        return torch.mul(prepared, ratio, out=out).exp_()

    def slope(self, value: Block, prepared: Block, ratio: float) -> Block:
        return value

    def _spread(self, count: int, generator: torch.Generator) -> float:
        return 1.0


class InverseMultiquadric(RadialKernel):
    """k = (1 + |x - y|^2 / (2 sigma^2))^(-1/2): the Gaussian's shape near, a tail that still pulls from afar."""

    def value(self, prepared: Block, ratio: float, out: Block) -> Block:
        return torch.mul(prepared, -ratio, out=out).add_(1).rsqrt_()

    def slope(self, value: Block, prepared: Block, ratio: float) -> Block:
        return value.pow_(3).mul_(0.5)

    def _spread(self, count: int, generator: torch.Generator) -> Tensor:
        """(1 + u)^(-1/2) = E exp(-s u) with s ~ Gamma(1/2), which is half the square of a normal number."""
        return torch.randn(count, generator=generator).abs() / math.sqrt(2)


class Laplace(RadialKernel):
    """k = exp(-|x - y| / sigma): a kink at x = y, where the slope is taken as 0."""

    def prepare(self, t: Block) -> Block:
        """|x - y| / sigma of the widest kernel."""
        return t.mul_(-2).sqrt_()

    def value(self, prepared: Block, ratio: float, out: Block) -> Block:
        return torch.mul(prepared, -math.sqrt(ratio), out=out).exp_()

    def slope(self, value: Block, prepared: Block, ratio: float) -> Block:
        return _zero_infinities(value.div_(prepared)).mul_(1 / math.sqrt(ratio))


class Energy(RadialKernel):
    """k = -|x - y|, the kernel of the energy distance 2 E|x - r| - E|x - x'| - E|r - r'|. It has no bandwidth.

    Source: Sejdinovic et al., "Equivalence of distance-based and RKHS-based statistics in hypothesis testing", 2013.
    """

    diagonal = 0.0
    definite = False

    def __init__(self) -> None:
        super().__init__((1.0,))

    def value(self, prepared: Block, ratio: float, out: Block) -> Block:
        return torch.neg(prepared, out=out).sqrt_().neg_()

    def slope(self, value: Block, prepared: Block, ratio: float) -> Block:
        return _zero_infinities(value.reciprocal_()).mul_(-0.5)


KERNELS: dict[str, type[Gaussian | Laplace | InverseMultiquadric]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "imq": InverseMultiquadric,
}
"""The kernels that have a bandwidth."""


def _zero_infinities(x: Tensor) -> Tensor:
    return x.nan_to_num_(nan=math.nan, posinf=0, neginf=0)


def _plan(gammas: Sequence[float]) -> list[tuple[int, float, int]]:
    """(b, gamma_b / smallest, squarings) in rising gamma; squarings > 0: the last kernel, squared so many times.

    Bandwidths in ratio 2 have gammas in ratio 4, so that k_narrow = k_wide^4: two products in place of an exponential.
    """
    plan: list[tuple[int, float, int]] = []
    smallest = min(gammas)
    for b in sorted(range(len(gammas)), key=lambda index: gammas[index]):
        ratio, squarings = gammas[b] / smallest, 0
        if plan:
            power = math.log2(ratio / plan[-1][1])
            if abs(power - round(power)) < 1e-9 and 1 <= round(power) <= _MOST_SQUARINGS:
                squarings = round(power)
        plan.append((b, ratio, squarings))
    return plan
