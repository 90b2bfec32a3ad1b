"""The squared MMD of a radial kernel, its value and closed-form gradient in one blocked pass.

Dimension letters: n generated rows; m landmarks; d features; b bandwidths. A kernel is an object of `irdm.ops.radial`;
at several bandwidths it is their mean, k = (1/b) sum_b k_b. With `part` = (p, parts) only the p-th of so many parts is
computed. Their values and gradients add up to the whole, and each evaluates its share of n^2 / 2 + n m kernel values.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from irdm.ops.radial import RadialKernel
from irdm.ops.rows import pair_rows, share_of, squared_norms

Part = tuple[int, int]
ALL = (0, 1)


def mean_kernel(
    x: Float[Tensor, "n d"], kernel: RadialKernel, *, unbiased: bool = False, block: int | None = None, part: Part = ALL
) -> Float[Tensor, ""]:
    """(1/n^2) sum_ij k(x_i, x_j) with a float64 sum; unbiased leaves the n pairs i = j out, over n (n - 1).

    Raises ValueError for a single row when unbiased.
    """
    return _Blocks(x, kernel, block, part).repulsion(None, unbiased)


def squared_mmd(
    fake: Float[Tensor, "n d"],
    landmarks: Float[Tensor, "m d"],
    alpha: Float[Tensor, "b m"],
    kernel: RadialKernel,
    constant: float | Tensor = 0.0,
    *,
    unbiased: bool = False,
    block: int | None = None,
    part: Part = ALL,
) -> Float[Tensor, ""]:
    """Squared MMD against a weighted mean embedding, in float64, differentiable (once) in `fake` alone.

        L       = (1/n^2) sum_ij k(g_i, g_j) - (2/n) sum_ik k(g_i, Z_k) alpha_k + constant
        dL/dg_i = -(4/n^2) (s_i g_i - sum_j P_ij g_j) + (4/n) (w_i g_i - sum_k A_ik Z_k)

    with P = -dk/d|x - y|^2 of the pairs (gamma K for a Gaussian), s its row sums, A_ik = the same of (g_i, Z_k) times
    alpha_k, and w its row sums; with several bandwidths, the mean over them. The gradient is computed with the value,
    so nothing but itself [n, d] is kept for the backward pass: 3 n^2 d + 4 n m d floating-point operations in all.

    Args:
        fake: generated rows [n, d].
        landmarks: points Z [m, d].
        alpha: their coefficients, a row for each bandwidth [b, m].
        kernel: k, at b bandwidths.
        constant: the mean kernel of the real rows with themselves, averaged over the bandwidths.
        unbiased: leave the n pairs i = j out of the first term, and divide it by n (n - 1). Needs two rows: ValueError.
        block: rows of a block; None takes the size measured best for the device.

    Source: arXiv 2607.02375, the Nystrom estimator; equations in docs/method.md.
    """
    differentiable = torch.is_grad_enabled() and fake.requires_grad
    with torch.no_grad():
        blocks = _Blocks(fake, kernel, block, part)
        ascent = torch.zeros_like(blocks.x) if differentiable else None
        value = blocks.repulsion(ascent, unbiased) - 2 * blocks.attraction(landmarks, alpha, ascent)
        value = value + constant / part[1]
        if ascent is not None:
            ascent.addcmul_(blocks.row_weights[:, None], blocks.x)
    return value if ascent is None else _KnownGradient.apply(fake, value, ascent)  # pyright: ignore[reportReturnType]


class _KnownGradient(torch.autograd.Function):
    """A value whose gradient was computed with it, as one node of the graph."""

    @staticmethod
    def forward(ctx, x, value, gradient):
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, outer):  # pyright: ignore[reportIncompatibleMethodOverride]
        return outer * ctx.saved_tensors[0], None, None


class _Blocks:
    """Generated rows x [n, d] with the reusable buffers of one pass over pairs of blocks."""

    def __init__(self, x: Tensor, kernel: RadialKernel, block: int | None, part: Part) -> None:
        self.x, self.part = x.contiguous(), part
        self.kernel = kernel
        self.bandwidths = len(kernel.gammas)
        self.block = block or _block_size(x)
        self.norms = squared_norms(self.x).mul_(kernel.base)
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
            total -= n * self.bandwidths * self.kernel.diagonal / self.part[1]
        for i in [i for band in pair_rows(n, self.part) for i in self._ranges(band)]:
            for j in [i, *self._ranges(slice(i.stop, n))]:
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
        norms = squared_norms(landmarks).mul_(self.kernel.base)
        for i in self._ranges(share_of(len(self.x), self.part)):
            for k in self._ranges(slice(0, len(landmarks))):
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

    def _ranges(self, rows: slice) -> list[slice]:
        return [slice(low, min(low + self.block, rows.stop)) for low in range(rows.start, rows.stop, self.block)]

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
