"""Gaussian moments of streamed rows, and the squared 2-Wasserstein (Frechet) distance between Gaussians.

Dimension letters: n rows; d features.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor


def moments(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean [d] and unbiased covariance [d, d] in float64, differentiable.

    Raises:
        ValueError: for fewer than two rows.
    """
    if len(rows) < 2:
        raise ValueError(f"Got {len(rows)} rows, expected at least 2: an unbiased covariance divides by n - 1.")
    rows = rows.double()
    mean = rows.mean(dim=0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def streaming_moments(blocks: Iterable[Tensor]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """`moments` of rows that come as blocks [<=s, d], merged pairwise (Chan, Golub and LeVeque, 1983).

    Raises:
        ValueError: for fewer than two rows in all.
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
    if count < 2 or mean is None or scatter is None:
        raise ValueError(f"Got {count} rows, expected at least 2: an unbiased covariance divides by n - 1.")
    return mean, scatter / (count - 1)


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
