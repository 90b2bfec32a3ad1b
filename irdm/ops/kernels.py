"""Gaussian kernels: bandwidth, mean embeddings, and the squared MMD with its closed-form gradient in one blocked pass.

Dimension letters: n generated rows; m landmarks; r real rows; d features; b bandwidths.

The kernel is k_b(x, y) = exp(-gamma_b |x - y|^2) with gamma_b = 1 / (2 sigma_b^2); several bandwidths are averaged,
k = (1/b) sum_b k_b, so that k(x, x) = 1 always.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_MOST_SQUARINGS = 4  # a kernel is taken from its wider neighbour by at most this many squarings


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


def kernel_means(
    points: Float[Tensor, "m d"], blocks: Iterable[Tensor], gammas: Sequence[float]
) -> Float[Tensor, "b m"]:
    """mu_bk = mean over all rows r of k_b(points_k, r), in float64, the rows streamed as blocks [<=s, d]."""
    points = points.double()
    total = points.new_zeros(len(gammas), len(points))
    count = 0
    for rows in blocks:
        distances = squared_distances(points, rows.double())
        for b, gamma in enumerate(gammas):
            total[b] += torch.exp(distances * -gamma).sum(dim=1)
        count += len(rows)
    return total / count


def nystrom_coefficients(
    landmarks: Float[Tensor, "m d"], means: Float[Tensor, "b m"], gammas: Sequence[float], ridge: float = 1e-6
) -> Float[Tensor, "b m"]:
    """alpha_b = (K_ZZ + ridge I)^-1 mu_b by Cholesky in float64: the mean embedding seen through the landmarks.

    The ridge keeps the system positive definite when landmarks coincide: they then share their coefficient.
    """
    landmarks = landmarks.double()
    distances = squared_distances(landmarks, landmarks).fill_diagonal_(0)
    alphas = []
    for gamma, mean in zip(gammas, means.double(), strict=True):
        gram = torch.exp(distances * -gamma)
        gram.diagonal().add_(ridge)
        alphas.append(torch.cholesky_solve(mean[:, None], torch.linalg.cholesky(gram))[:, 0])
    return torch.stack(alphas)


def fourier_features(
    x: Float[Tensor, "n d"], frequencies: Float[Tensor, "d f"], phases: Float[Tensor, " f"], count: int
) -> Float[Tensor, "n f"]:
    """phi(x) = sqrt(2 / count) cos(x W + p): phi(x).phi(y) estimates k(x, y) for each run of `count` columns.

    W ~ N(0, sigma^-2), p ~ U[0, 2 pi).
    """
    return torch.addmm(phases, x, frequencies).cos() * math.sqrt(2 / count)


def mean_kernel(x: Float[Tensor, "n d"], gammas: Sequence[float], block: int | None = None) -> Float[Tensor, ""]:
    """(1/n^2) sum_ij k(x_i, x_j), diagonal in, float64 sum; blockwise, each pair of blocks once."""
    return _Blocks(x, gammas, block).repulsion(None)


def gaussian_mmd(
    fake: Float[Tensor, "n d"],
    landmarks: Float[Tensor, "m d"],
    alpha: Float[Tensor, "b m"],
    gammas: Sequence[float],
    constant: float | Tensor = 0.0,
    *,
    block: int | None = None,
) -> Float[Tensor, ""]:
    """Squared MMD against a weighted mean embedding, differentiable (once) in `fake` alone.

        L = (1/n^2) sum_ij k(g_i, g_j) - (2/n) sum_ik k(g_i, Z_k) alpha_k + constant

    With several bandwidths L is the mean of the L_b. The first term is exact and biased (diagonal in). The gradient
    is closed-form and computed with the value, so nothing but itself [n, d] is kept for the backward pass.

    Args:
        fake: generated rows [n, d].
        landmarks: points Z [m, d].
        alpha: their coefficients, a row for each bandwidth [b, m].
        gammas: the b inverse squared bandwidths 1 / (2 sigma_b^2).
        constant: the mean kernel of the real rows with themselves, averaged over the bandwidths.
        block: rows of a block; None takes the size measured best for the device.

    Source: arXiv 2607.02375, the Nystrom estimator; equations in docs/method.md.
    """
    if torch.is_grad_enabled() and fake.requires_grad:
        value: Tensor = _GaussianMMD.apply(fake, landmarks, alpha, tuple(gammas), constant, block)
        return value
    return gaussian_mmd_and_gradient(fake, landmarks, alpha, gammas, constant, block=block, gradient=False)[0]


@torch.no_grad()
def gaussian_mmd_and_gradient(
    fake: Float[Tensor, "n d"],
    landmarks: Float[Tensor, "m d"],
    alpha: Float[Tensor, "b m"],
    gammas: Sequence[float],
    constant: float | Tensor = 0.0,
    *,
    block: int | None = None,
    gradient: bool = True,
) -> tuple[Float[Tensor, ""], Float[Tensor, "n d"] | None]:
    """The value of `gaussian_mmd` and, when asked for, its gradient with respect to `fake`.

        dL/dg_i = -(4/n^2) (s_i g_i - sum_j P_ij g_j) + (4/n) (w_i g_i - sum_k A_ik Z_k)

    with P = (1/b) sum_b gamma_b K_b, s its row sums, A_ik = (1/b) sum_b gamma_b k_b(g_i, Z_k) alpha_bk and w its row
    sums. 3 n^2 d + 4 n m d floating-point operations, whatever the number of bandwidths.
    """
    blocks = _Blocks(fake, gammas, block)
    ascent = torch.zeros_like(blocks.x) if gradient else None
    value = blocks.repulsion(ascent) - 2 * blocks.attraction(landmarks, alpha, ascent) + constant
    if ascent is not None:
        ascent.addcmul_(blocks.row_weights[:, None], blocks.x)
    return value.to(fake.dtype), ascent


class _GaussianMMD(torch.autograd.Function):
    """The pass above as one node of the graph."""

    @staticmethod
    def forward(ctx, fake, landmarks, alpha, gammas, constant, block):
        value, gradient = gaussian_mmd_and_gradient(fake, landmarks, alpha, gammas, constant, block=block)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, outer):  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return outer * gradient, None, None, None, None, None


class _Blocks:
    """Generated rows x [n, d] with the reusable buffers of one pass over pairs of blocks."""

    def __init__(self, x: Tensor, gammas: Sequence[float], block: int | None) -> None:
        self.x = x.contiguous()
        self.plan = _plan(gammas)
        self.base = self.plan[0][1]  # the smallest gamma, the widest kernel: the exponents are held for it
        self.block = block or _block_size(x)
        self.norms = _squared_norms(self.x).mul_(self.base)
        self.row_weights = self.x.new_zeros(len(x))
        self._buffers = [self.x.new_empty(self.block**2) for _ in range(3 if len(gammas) > 1 else 2)]

    def repulsion(self, ascent: Tensor | None) -> Tensor:
        """(1/n^2) sum_ij k(x_i, x_j) in float64; its gradient, less the x_i parts, is added to `ascent`."""
        n, kernels = len(self.x), len(self.plan)
        scale = 4 * self.base / (n * n * kernels)
        total = torch.zeros((), dtype=torch.float64, device=self.x.device)
        for i in self._ranges(n):
            for j in self._ranges(n, i.start):
                exponents = self._exponents(i, self.x[j], self.norms[j])
                if i == j:
                    exponents.fill_diagonal_(0)
                weights = None
                for _, ratio, kernel in self._kernels(exponents):
                    total += kernel.sum() * (1 if i == j else 2)
                    if ascent is not None:
                        weights = self._accumulate(weights, kernel, ratio)
                if ascent is None:
                    continue
                assert weights is not None
                self.row_weights[i] -= weights.sum(dim=1).mul_(scale)
                ascent[i].addmm_(weights, self.x[j], alpha=scale)
                if i != j:
                    self.row_weights[j] -= weights.sum(dim=0).mul_(scale)
                    ascent[j].addmm_(weights.T, self.x[i], alpha=scale)
        return total / (n * n * kernels)

    def attraction(self, landmarks: Tensor, alpha: Tensor, ascent: Tensor | None) -> Tensor:
        """(1/n) sum_ik k(x_i, Z_k) alpha_k in float64; the gradient of -2 times it, less the x_i parts, to `ascent`."""
        n, kernels = len(self.x), len(self.plan)
        scale = 4 * self.base / (n * kernels)
        total = torch.zeros((), dtype=torch.float64, device=self.x.device)
        norms = _squared_norms(landmarks).mul_(self.base)
        for i in self._ranges(n):
            for k in self._ranges(len(landmarks)):
                weights = None
                for b, ratio, kernel in self._kernels(self._exponents(i, landmarks[k], norms[k])):
                    total += torch.mv(kernel, alpha[b, k]).sum()
                    if ascent is not None:
                        weights = self._accumulate(weights, kernel, ratio, alpha[b, k])
                if ascent is None:
                    continue
                assert weights is not None
                self.row_weights[i] += weights.sum(dim=1).mul_(scale)
                ascent[i].addmm_(weights, landmarks[k], alpha=-scale)
        return total / (n * kernels)

    def _ranges(self, count: int, start: int = 0) -> list[slice]:
        return [slice(low, min(low + self.block, count)) for low in range(start, count, self.block)]

    def _view(self, buffer: int, like: Tensor) -> Tensor:
        return self._buffers[buffer][: like.numel()].view(like.shape)

    def _exponents(self, i: slice, y: Tensor, y_norms: Tensor) -> Tensor:
        """-gamma |x_i - y_j|^2 for the smallest gamma, in the first buffer."""
        rows = self.x[i]
        out = self._buffers[0][: len(rows) * len(y)].view(len(rows), len(y))
        torch.addmm(y_norms, rows, y.T, beta=-1, alpha=2 * self.base, out=out)
        return out.sub_(self.norms[i, None]).clamp_(max=0)

    def _kernels(self, exponents: Tensor) -> Iterator[tuple[int, float, Tensor]]:
        """(bandwidth index, gamma / smallest gamma, kernel) from wide to narrow; one buffer, overwritten each time."""
        kernel = self._view(1, exponents)
        for b, gamma, squarings in self.plan:
            if squarings:
                for _ in range(squarings):
                    kernel.mul_(kernel)
            elif gamma == self.base:
                torch.exp(exponents, out=kernel)
            else:
                torch.mul(exponents, gamma / self.base, out=kernel).exp_()
            yield b, gamma / self.base, kernel

    def _accumulate(self, weights: Tensor | None, kernel: Tensor, ratio: float, alpha: Tensor | None = None) -> Tensor:
        """weights + ratio * kernel * alpha, in the kernel's own buffer when there is only one bandwidth."""
        if len(self.plan) == 1:
            return kernel if alpha is None else kernel.mul_(alpha)
        if weights is None:
            weights = self._view(2, kernel)
            return weights.copy_(kernel) if alpha is None else torch.mul(kernel, alpha * ratio, out=weights)
        return weights.add_(kernel, alpha=ratio) if alpha is None else weights.addcmul_(kernel, alpha * ratio)


def _block_size(x: Tensor) -> int:
    """Rows of a block. On a CPU, measured: wide rows keep the products busy in smaller, leaner blocks."""
    if x.is_cuda:
        return 2048
    return 1024 if x.shape[1] <= 256 else 512


def _plan(gammas: Sequence[float]) -> list[tuple[int, float, int]]:
    """(bandwidth index, gamma, squarings) in rising gamma; squarings > 0: the last kernel, squared so many times.

    Bandwidths in ratio 2 have gammas in ratio 4, so that k_narrow = k_wide^4: two products in place of an exponential.
    """
    plan: list[tuple[int, float, int]] = []
    for b in sorted(range(len(gammas)), key=lambda index: gammas[index]):
        squarings = 0
        if plan:
            power = math.log2(gammas[b] / plan[-1][1])
            if abs(power - round(power)) < 1e-9 and 1 <= round(power) <= _MOST_SQUARINGS:
                squarings = round(power)
        plan.append((b, gammas[b], squarings))
    return plan
