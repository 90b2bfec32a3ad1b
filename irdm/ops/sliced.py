"""One-dimensional optimal transport and sliced Wasserstein distances.

Dimension letters: n, m rows of the two samples; d features; p directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_COLUMNS = 64  # directions are drawn this many at a time: part of the definition, other implementations agree


def unit_directions(dim: int, count: int, seed: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "d p"]:
    """`count` random directions on the unit sphere, on the CPU, as columns [dim, count].

    Gaussian columns, 64 at a time from one CPU generator seeded with `seed`, each divided by its norm.

    Raises:
        ValueError: when `dim` or `count` is not positive.
    """
    if dim < 1 or count < 1:
        raise ValueError(f"Got dim={dim} and count={count} for random directions; both must be at least 1.")
    generator = torch.Generator().manual_seed(seed)
    widths = [min(_COLUMNS, count - start) for start in range(0, count, _COLUMNS)]
    columns = torch.cat([torch.randn(dim, width, generator=generator) for width in widths], dim=1).to(dtype)
    return columns / columns.norm(dim=0, keepdim=True)


def sorted_rows(rows: Float[Tensor, "p n"]) -> Float[Tensor, "p n"]:
    """Each row sorted upwards, differentiable; on a CPU NumPy does it, whose sort is vectorised."""
    if rows.device.type != "cpu" or rows.dtype == torch.bfloat16:  # which NumPy has not
        return rows.sort(dim=1).values
    if not rows.requires_grad:
        return torch.from_numpy(np.sort(rows.numpy(), axis=1))
    return _Sorted.apply(rows) if rows.dtype == torch.float32 else rows.sort(dim=1).values  # type: ignore[return-value]


class _Sorted(torch.autograd.Function):
    """Rows of float32, sorted as integers of 64 bits: the number above its place in the row."""

    BLOCK = 2**17  # numbers sorted at a time, which fit a cache

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        order = torch.empty(rows.shape, dtype=torch.int64)
        size = max(1, _Sorted.BLOCK // rows.shape[1])
        for block, places in zip(rows.split(size), order.split(size), strict=True):
            bits = np.ascontiguousarray(block.numpy()).view(np.uint32)
            flips = np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))  # so that they ascend as numbers
            keys = (bits ^ flips).astype(np.uint64) << np.uint64(32) | np.arange(bits.shape[1], dtype=np.uint64)
            keys.sort(axis=1)
            places.numpy()[:] = keys & np.uint64(0xFFFFFFFF)
        ctx.save_for_backward(order)
        return rows.gather(1, order)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        (order,) = ctx.saved_tensors
        return torch.empty_like(gradient).scatter(1, order, gradient)


def wasserstein2_squared_sorted(a_sorted: Float[Tensor, "n p"], b_sorted: Float[Tensor, "m p"]) -> Float[Tensor, " p"]:
    """Squared 2-Wasserstein distance of each pair of columns, both already sorted upwards: [p].

    W_2^2 = int_0^1 (F_a^-1(t) - F_b^-1(t))^2 dt, exact for unequal sizes too: the two quantile functions are constant
    between the merged steps i/n and j/m, which are compared as integers.
    """
    n, m = len(a_sorted), len(b_sorted)
    if n == m:
        return (a_sorted - b_sorted).square().mean(dim=0)
    device = a_sorted.device
    steps = torch.cat([torch.arange(0, n * m, m, device=device), torch.arange(0, n * m, n, device=device)])
    starts = torch.unique(steps)  # sorted; in units of 1/(n m)
    ends = torch.cat([starts[1:], starts.new_tensor([n * m])])
    weights = ((ends - starts).double() / (n * m)).to(a_sorted.dtype)
    return weights @ (a_sorted[starts // m] - b_sorted[starts // n]).square()


def quantile_means(sorted_rows: Float[Tensor, "p m"], n: int) -> tuple[Float[Tensor, "p n"], Float[Tensor, " p"]]:
    """Means of each row's quantile function over n equal parts, and the mean variance within the parts.

    With them W_2^2 to any n numbers x, sorted upwards, is exactly mean (x - means)^2 + variance, for any n and m: what
    `wasserstein2_squared_sorted` gives, without merging the steps of both for every x.

    Args:
        sorted_rows: each row sorted upwards [p, m].
        n: number of parts.
    """
    m = sorted_rows.shape[1]
    if n == m:
        return sorted_rows, sorted_rows.new_zeros(len(sorted_rows))
    rows = sorted_rows.double()
    ends = torch.arange(n + 1, device=rows.device) * m  # in units of 1/(n m)
    whole, part = ends // n, (ends % n).double() / n
    sums = torch.nn.functional.pad(rows.cumsum(1), (1, 0))  # the integral of the quantile function, times m
    integral = sums[:, whole] + part * rows[:, whole.clamp(max=m - 1)]
    means = integral.diff(dim=1) * (n / m)
    within = (rows.square().mean(1) - means.square().mean(1)).clamp(min=0)
    return means.to(sorted_rows.dtype), within.to(sorted_rows.dtype)


def sliced_wasserstein2(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], directions: Float[Tensor, "d p"]
) -> Float[Tensor, ""]:
    """SW_2 = sqrt of the mean over directions of W_2^2 of the projections; differentiable away from zero."""
    return sliced_wasserstein2_squared(x, y, directions).sqrt()


def sliced_wasserstein2_squared(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], directions: Float[Tensor, "d p"]
) -> Float[Tensor, ""]:
    """SW_2^2 = mean over directions of `projected_squares`."""
    return projected_squares(x, y, directions).mean()


def projected_squares(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], directions: Float[Tensor, "d p"]
) -> Float[Tensor, " p"]:
    """W_2^2 of the projections on each direction [p].

    Args:
        x: first sample [n, d].
        y: second sample [m, d]; n and m may differ.
        directions: unit columns [d, p], from `unit_directions`; moved to the device and type of x.

    Raises:
        ValueError: when the widths disagree or a sample is empty.
    """
    if x.shape[1] != y.shape[1] or x.shape[1] != directions.shape[0] or not len(x) or not len(y):
        raise ValueError(
            f"Got samples {tuple(x.shape)} and {tuple(y.shape)} with directions {tuple(directions.shape)}; expected "
            "[n, d], [m, d] and [d, p] with n, m >= 1. Embed both samples with the same encoder."
        )
    along = directions.to(x).T
    return wasserstein2_squared_sorted(sorted_rows(along @ x.T).T, sorted_rows(along @ y.to(x).T).T)
