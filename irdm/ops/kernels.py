"""Bandwidth, mean embeddings, and the squared MMD of a radial kernel with its closed-form gradient in one blocked pass.

Dimension letters: n generated rows; m landmarks; r real rows; d features; b bandwidths.

A kernel is an object of `irdm.ops.radial`; at several bandwidths it is their mean, k = (1/b) sum_b k_b.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from irdm.ops.radial import RadialKernel


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """|x_i - y_j|^2 as |x|^2 + |y|^2 - 2 x.y, clamped at zero. Centre the rows first: a large common mean cancels."""
    products = torch.addmm(_squared_norms(y), x, y.T, alpha=-2)
    return products.add_(_squared_norms(x)[:, None]).clamp_(min=0)


def _squared_norms(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """|x_i|^2 without a temporary of the size of x."""
    return torch.linalg.vector_norm(x, dim=1).square_()


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
        above = torch.ones(len(rows), n - start, dtype=torch.bool, device=x.device).triu_(diagonal=1)
        values = squared_distances(rows, x[start:])[above]
        pairs[filled : filled + len(values)] = values
        filled += len(values)
    assert filled == len(pairs)
    return math.sqrt(pairs.median().item())


def kernel_means(points: Float[Tensor, "m d"], blocks: Iterable[Tensor], kernel: RadialKernel) -> Float[Tensor, "b m"]:
    """mu_bk = mean over all rows r of k_b(points_k, r), in float64, the rows streamed as blocks [<=s, d]."""
    points = points.double()
    total = points.new_zeros(len(kernel.gammas), len(points))
    count = 0
    for rows in blocks:
        for b, values in kernel.matrices(squared_distances(points, rows.double())):
            total[b] += values.sum(dim=1)
        count += len(rows)
    return total / count


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


def mean_kernel(x: Float[Tensor, "n d"], kernel: RadialKernel, block: int | None = None) -> Float[Tensor, ""]:
    """(1/n^2) sum_ij k(x_i, x_j), diagonal in, float64 sum; blockwise, each pair of blocks once."""
    return _Blocks(x, kernel, block).repulsion(None)


def squared_mmd(
    fake: Float[Tensor, "n d"],
    landmarks: Float[Tensor, "m d"],
    alpha: Float[Tensor, "b m"],
    kernel: RadialKernel,
    constant: float | Tensor = 0.0,
    *,
    unbiased: bool = False,
    block: int | None = None,
) -> Float[Tensor, ""]:
    """Squared MMD against a weighted mean embedding, differentiable (once) in `fake` alone.

        L = (1/n^2) sum_ij k(g_i, g_j) - (2/n) sum_ik k(g_i, Z_k) alpha_k + constant

    With several bandwidths L is the mean of the L_b. The first term is exact. The gradient is closed-form and computed
    with the value, so nothing but itself [n, d] is kept for the backward pass.

    Args:
        fake: generated rows [n, d].
        landmarks: points Z [m, d].
        alpha: their coefficients, a row for each bandwidth [b, m].
        kernel: k, at b bandwidths.
        constant: the mean kernel of the real rows with themselves, averaged over the bandwidths.
        unbiased: leave the n pairs i = j out of the first term, and divide it by n (n - 1).
        block: rows of a block; None takes the size measured best for the device.

    Raises:
        ValueError: for a single generated row when unbiased.

    Source: arXiv 2607.02375, the Nystrom estimator; equations in docs/method.md.
    """
    if torch.is_grad_enabled() and fake.requires_grad:
        value: Tensor = _SquaredMMD.apply(fake, landmarks, alpha, kernel, constant, unbiased, block)
        return value
    return squared_mmd_and_gradient(
        fake, landmarks, alpha, kernel, constant, unbiased=unbiased, block=block, gradient=False
    )[0]


@torch.no_grad()
def squared_mmd_and_gradient(
    fake: Float[Tensor, "n d"],
    landmarks: Float[Tensor, "m d"],
    alpha: Float[Tensor, "b m"],
    kernel: RadialKernel,
    constant: float | Tensor = 0.0,
    *,
    unbiased: bool = False,
    block: int | None = None,
    gradient: bool = True,
) -> tuple[Float[Tensor, ""], Float[Tensor, "n d"] | None]:
    """The value of `squared_mmd` and, when asked for, its gradient with respect to `fake`.

        dL/dg_i = -(4/n^2) (s_i g_i - sum_j P_ij g_j) + (4/n) (w_i g_i - sum_k A_ik Z_k)

    with P = -(1/b) sum_b dk_b/d|x - y|^2 of the pairs (gamma K for one Gaussian), s its row sums, A_ik = the same of
    (g_i, Z_k), each bandwidth times its alpha_bk, and w its row sums; n^2 is n (n - 1) when unbiased. 3 n^2 d + 4 n m d
    floating-point operations, whatever the number of bandwidths.
    """
    blocks = _Blocks(fake, kernel, block)
    ascent = torch.zeros_like(blocks.x) if gradient else None
    value = blocks.repulsion(ascent, unbiased) - 2 * blocks.attraction(landmarks, alpha, ascent) + constant
    if ascent is not None:
        ascent.addcmul_(blocks.row_weights[:, None], blocks.x)
    return value.to(fake.dtype), ascent


class _SquaredMMD(torch.autograd.Function):
    """The pass above as one node of the graph."""

    @staticmethod
    def forward(ctx, fake, landmarks, alpha, kernel, constant, unbiased, block):
        value, gradient = squared_mmd_and_gradient(
            fake, landmarks, alpha, kernel, constant, unbiased=unbiased, block=block
        )
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, outer):  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None, None, None, None, None, None


class _Blocks:
    """Generated rows x [n, d] with the reusable buffers of one pass over pairs of blocks."""

    def __init__(self, x: Tensor, kernel: RadialKernel, block: int | None) -> None:
        self.x = x.contiguous()
        self.kernel = kernel
        self.bandwidths = len(kernel.gammas)
        self.block = block or _block_size(x)
        self.norms = _squared_norms(self.x).mul_(kernel.base)
        self.row_weights = self.x.new_zeros(len(x))
        self._buffers = [self.x.new_empty(self.block**2) for _ in range(3 if self.bandwidths > 1 else 2)]

    def repulsion(self, ascent: Tensor | None, unbiased: bool = False) -> Tensor:
        """(1/n^2) sum_ij k(x_i, x_j) in float64; its gradient, less the x_i parts, is added to `ascent`.

        A row's kernel with itself is a constant: unbiased only takes it out of the value, and divides by n (n - 1).
        """
        n = len(self.x)
        if unbiased and n < 2:
            raise ValueError("Got 1 generated row, expected at least 2: the unbiased repulsion is a mean over pairs.")
        pairs = (n * (n - 1) if unbiased else n * n) * self.bandwidths
        scale = 4 * self.kernel.base / pairs
        total = torch.zeros((), dtype=torch.float64, device=self.x.device)
        if unbiased:
            total -= n * self.bandwidths * self.kernel.diagonal
        for i in self._ranges(n):
            for j in self._ranges(n, i.start):
                t = self._scaled_distances(i, self.x[j], self.norms[j])
                if i == j:
                    t.fill_diagonal_(0)
                t, weights = self.kernel.prepare(t), None
                for _, ratio, values in self.kernel.values(t, self._view(1, t)):
                    total += values.sum() * (1 if i == j else 2)
                    if ascent is not None:
                        weights = self._accumulate(weights, self.kernel.slope(values, t, ratio), ratio)
                if ascent is None:
                    continue
                assert weights is not None
                self.row_weights[i] -= weights.sum(dim=1).mul_(scale)
                ascent[i].addmm_(weights, self.x[j], alpha=scale)
                if i != j:
                    self.row_weights[j] -= weights.sum(dim=0).mul_(scale)
                    ascent[j].addmm_(weights.T, self.x[i], alpha=scale)
        return total / pairs

    def attraction(self, landmarks: Tensor, alpha: Tensor, ascent: Tensor | None) -> Tensor:
        """(1/n) sum_ik k(x_i, Z_k) alpha_k in float64; the gradient of -2 times it, less the x_i parts, to `ascent`."""
        pairs = len(self.x) * self.bandwidths
        scale = 4 * self.kernel.base / pairs
        total = torch.zeros((), dtype=torch.float64, device=self.x.device)
        norms = _squared_norms(landmarks).mul_(self.kernel.base)
        for i in self._ranges(len(self.x)):
            for k in self._ranges(len(landmarks)):
                t, weights = self.kernel.prepare(self._scaled_distances(i, landmarks[k], norms[k])), None
                for b, ratio, values in self.kernel.values(t, self._view(1, t)):
                    total += torch.mv(values, alpha[b, k]).sum()
                    if ascent is not None:
                        weights = self._accumulate(weights, self.kernel.slope(values, t, ratio), ratio, alpha[b, k])
                if ascent is None:
                    continue
                assert weights is not None
                self.row_weights[i] += weights.sum(dim=1).mul_(scale)
                ascent[i].addmm_(weights, landmarks[k], alpha=-scale)
        return total / pairs

    def _ranges(self, count: int, start: int = 0) -> list[slice]:
        return [slice(low, min(low + self.block, count)) for low in range(start, count, self.block)]

    def _view(self, buffer: int, like: Tensor) -> Tensor:
        return self._buffers[buffer][: like.numel()].view(like.shape)

    def _scaled_distances(self, i: slice, y: Tensor, y_norms: Tensor) -> Tensor:
        """t = -gamma |x_i - y_j|^2 <= 0 for the smallest gamma, in the first buffer."""
        rows = self.x[i]
        out = self._buffers[0][: len(rows) * len(y)].view(len(rows), len(y))
        torch.addmm(y_norms, rows, y.T, beta=-1, alpha=2 * self.kernel.base, out=out)
        return out.sub_(self.norms[i, None]).clamp_(max=0)

    def _accumulate(self, weights: Tensor | None, slope: Tensor, ratio: float, alpha: Tensor | None = None) -> Tensor:
        """weights + ratio * slope * alpha, in the slope's own buffer when there is only one bandwidth."""
        if self.bandwidths == 1:
            return slope if alpha is None else slope.mul_(alpha)
        if weights is None:
            weights = self._view(2, slope)
            return torch.mul(slope, ratio if alpha is None else alpha * ratio, out=weights)
        return weights.add_(slope, alpha=ratio) if alpha is None else weights.addcmul_(slope, alpha * ratio)


def _block_size(x: Tensor) -> int:
    """Rows of a block. On a CPU, measured: wide rows keep the products busy in smaller, leaner blocks."""
    if x.is_cuda:
        return 2048
    return 1024 if x.shape[1] <= 256 else 512
