"""Kernel mean embeddings of real rows, computed once when a distance is fitted: at landmarks, or as random features.

Dimension letters: n rows; m landmarks; d features; b bandwidths; f random features of all bandwidths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from irdm.ops.radial import RadialKernel
from irdm.ops.rows import Total, alone, squared_distances

CACHED = 512  # rows at once, whose kernels with some thousand landmarks stay near the processor


def kernel_means(
    points: Float[Tensor, "m d"], blocks: Iterable[Tensor], kernel: RadialKernel, total: Total = alone
) -> Float[Tensor, "b m"]:
    """mu_bk = mean over all rows r of k_b(points_k, r), in float64, the rows streamed as blocks [<=s, d].

    With a `total` the blocks are this process's share of the rows.
    """
    points = points.double()
    sums, count = points.new_zeros(len(kernel.gammas), len(points)), points.new_zeros(())
    for rows in (part for block in blocks for part in block.split(CACHED)):
        for b, values in kernel.matrices(squared_distances(points, rows.double())):
            sums[b] += values.sum(dim=1)
        count += len(rows)
    return total(sums) / total(count)


def nystrom_coefficients(
    landmarks: Float[Tensor, "m d"], means: Float[Tensor, "b m"], kernel: RadialKernel, ridge: float = 1e-6
) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
    """alpha [b, m] and offset [b] with k_b(., Z) alpha_b + offset_b = mu_b at the landmarks, in float64.

    For a positive definite kernel alpha_b = (K_ZZ + ridge I)^-1 mu_b by Cholesky, and the offset is 0. Otherwise the
    coefficients must sum to 1, as the weights of the real rows do, and the offset is the multiplier of that constraint:
    [K_ZZ + ridge I, 1; 1', 0] (alpha, offset) = (mu, 1), the ridge in units of the mean |k|. The ridge keeps the system
    regular when landmarks coincide: they then share their coefficient.
    """
    landmarks, means = landmarks.double(), means.double()
    alpha, offset = torch.zeros_like(means), means.new_zeros(len(means))
    count = len(landmarks)
    for b, gram in kernel.matrices(squared_distances(landmarks, landmarks).fill_diagonal_(0)):
        if kernel.definite:
            gram.diagonal().add_(ridge)
            alpha[b] = torch.cholesky_solve(means[b, :, None], torch.linalg.cholesky(gram))[:, 0]
        else:
            bordered = gram.new_ones(count + 1, count + 1)
            bordered[:count, :count] = gram
            bordered.diagonal().add_(ridge * (gram.abs().mean().item() or 1.0))
            bordered[count, count] = 0
            solution = torch.linalg.solve(bordered, torch.cat([means[b], means.new_ones(1)]))
            alpha[b], offset[b] = solution[:count], solution[count]
    return alpha, offset


def fourier_features(
    x: Float[Tensor, "n d"], frequencies: Float[Tensor, "d f"], phases: Float[Tensor, " f"], count: int
) -> Float[Tensor, "n f"]:
    """phi(x) = sqrt(2 / count) cos(x W + p): phi(x).phi(y) estimates k(x, y) for each run of `count` columns.

    W from the kernel's `frequencies`, p ~ U[0, 2 pi).
    """
    return torch.addmm(phases, x, frequencies).cos() * math.sqrt(2 / count)


def median_distance(x: Float[Tensor, "n d"], block: int = 1024) -> float:
    """Square root of the (lower) median of |x_i - x_j|^2 over pairs i < j; the bandwidth sigma before any scale.

    Holds the n(n-1)/2 distances: 200 MB for ten thousand rows of float32.

    Raises:
        ValueError: for fewer than two rows.
    """
    n = len(x)
    if n < 2:
        raise ValueError(f"Got {n} rows, expected at least 2: a bandwidth is a median distance between two rows.")
    pairs = x.new_empty(n * (n - 1) // 2)
    filled = 0
    for start in range(0, n, block):
        rows = x[start : start + block]
        among, beyond = squared_distances(rows, x[start:]).split([len(rows), n - start - len(rows)], 1)
        above = torch.ones_like(among, dtype=torch.bool).triu_(diagonal=1)
        for values in (among[above], beyond):
            pairs[filled : filled + values.numel()].view(values.shape).copy_(values)
            filled += values.numel()
    assert filled == len(pairs)
    return math.sqrt(_lower_median(pairs))


def _lower_median(values: Float[Tensor, " n"], some: int = 2**16) -> float:
    """`values.median()`, of many by the few of them that lie between two quantiles of some."""
    n = len(values)
    if n > 4 * some:
        sample = values[:: n // some].sort().values
        middle, near = len(sample) // 2, 4 * math.isqrt(len(sample))
        low, high = sample[middle - near], sample[middle + near]
        below, above = int((values < low).sum()), int((values > high).sum())
        between = values[(values >= low) & (values <= high)]
        if below + len(between) + above == n and 0 <= (n - 1) // 2 - below < len(between):  # no NaN, and not missed
            return between.kthvalue((n - 1) // 2 - below + 1).values.item()
    return values.median().item()
