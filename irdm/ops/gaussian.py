"""Gaussian moments of streamed rows, and the squared 2-Wasserstein (Frechet) distance between Gaussians.

Dimension letters: n rows; d features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from irdm.ops.rows import Total, alone


def moments(
    rows: Float[Tensor, "n d"], share: slice | None = None, total: Total = alone
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean [d] and unbiased covariance [d, d] in float64, differentiable when `total` is.

    Args:
        rows: all rows.
        share: those that this process adds up, all of them by default.
        total: adds over the processes that share the rows.

    Raises:
        ValueError: for fewer than two rows.
    """
    n = len(rows)
    if n < 2:
        raise ValueError(f"Got {n} rows, expected at least 2: an unbiased covariance divides by n - 1.")
    rows = (rows if share is None else rows[share]).double()
    mean = total(rows.sum(dim=0)) / n
    centred = rows - mean
    return mean, total(centred.T @ centred) / (n - 1)


@dataclass(frozen=True)
class Moments:
    """Count, mean [d] and centred scatter [d, d] = sum (x - mean)(x - mean)^T of rows, in float64.

    Moments of two sets of rows add up to those of their union (Chan, Golub and LeVeque, 1983), so that blocks, shards
    and ranks may each compute their own: `sum(parts[1:], parts[0])`. Which rows were in which part, and in what order
    the parts are added, changes nothing but rounding.
    """

    count: int
    mean: Float64[Tensor, " d"]
    scatter: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, blocks: Iterable[Tensor]) -> Moments:
        """Moments of rows that come as blocks [<=s, d]; memory for one block and a few [d, d].

        Raises:
            ValueError: when there is no row at all.
        """
        count, mean, scatter = 0, None, None
        for block in blocks:
            rows = block.double()
            if not len(rows):
                continue
            block_mean = rows.mean(dim=0)
            centred = rows - block_mean
            if mean is None or scatter is None:
                count, mean, scatter = len(rows), block_mean, centred.T @ centred
                continue
            shift, together = block_mean - mean, count + len(rows)
            scatter.addmm_(centred.T, centred).add_(torch.outer(shift, shift), alpha=count * len(rows) / together)
            mean = mean + shift * (len(rows) / together)
            count = together
        if mean is None or scatter is None:
            raise ValueError("Got no rows, expected at least one: nothing has no moments.")
        return cls(count, mean, scatter)

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of rows together."""
        count, shift = self.count + other.count, other.mean - self.mean
        between = torch.outer(shift, shift).mul_(self.count * other.count / count)
        return Moments(count, self.mean + shift * (other.count / count), between.add_(self.scatter).add_(other.scatter))

    def over(self, total: Total) -> Moments:
        """Those of the rows of all processes together; each gets them."""
        count = self.mean.new_tensor(float(self.count))
        together = total(count)
        mean = total(count * self.mean) / together
        shift = self.mean - mean
        return Moments(int(together), mean, total(self.scatter + count * torch.outer(shift, shift)))

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased covariance. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"Got {self.count} rows, expected at least 2: an unbiased covariance divides by n - 1.")
        return self.scatter / (self.count - 1)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as tensors, for a safetensors file or for sending to other ranks; `Moments.load` reads it."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """The moments that `state_dict` gave."""
        return cls(int(tensors["count"]), tensors["mean"], tensors["scatter"])


def streaming_moments(
    blocks: Iterable[Tensor], total: Total = alone
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """`moments` of rows that come as blocks [<=s, d]. Raises ValueError for fewer than two rows in all."""
    found = Moments.of(blocks)
    found = found if total is alone else found.over(total)
    return found.mean, found.covariance


def symmetric_root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric square root of a positive semi-definite matrix; rounding below zero is cut."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(
    mean: Float[Tensor, " d"],
    covariance: Float[Tensor, "d d"],
    reference_mean: Float[Tensor, " d"],
    reference_covariance: Float[Tensor, "d d"],
    reference_root: Float[Tensor, "d d"],
    jitter: float = 1e-6,
) -> Float[Tensor, ""]:
    """|m - m_r|^2 + tr S + tr S_r - 2 tr (S_r^1/2 (S + jitter I) S_r^1/2)^1/2, differentiable in m and S.

    The trace of the root is the sum of the roots of the eigenvalues of a symmetric matrix. Eigenvalues that are zero to
    rounding (S_r of deficient rank) are left out, with their infinite slope. The jitter bounds the slope when S is
    singular, as with fewer rows than dimensions.
    """
    inner = reference_root @ covariance @ reference_root + jitter * reference_covariance
    values = torch.linalg.eigvalsh((inner + inner.T) / 2)
    rounding = len(values) * torch.finfo(values.dtype).eps * values.detach().abs().max()
    roots = values[values > rounding].sqrt().sum()
    return (mean - reference_mean).square().sum() + covariance.trace() + reference_covariance.trace() - 2 * roots
