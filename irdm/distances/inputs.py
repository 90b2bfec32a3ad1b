"""What a distance is given: real and generated rows, checked, and joined with their conditions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from irdm.distributed import Ranks
from irdm.ops.embedding import median_distance
from irdm.ops.rows import Rows, row_blocks

RIDGE = 0.01  # of the mean variance of a column of tau


def checked_mean(real: Rows, tau: Rows | None) -> Tensor:
    """The mean of the real rows [d] in float64, after checking them and their conditions.

    Raises ValueError for rows that are not [r, d] with r >= 2, hold a NaN or an infinity, or do not match tau.
    """
    _check_matrix("real", real)
    if len(real) < 2:
        raise ValueError(f"Got {len(real)} real rows, expected at least 2: one row says nothing about a spread.")
    if tau is not None:
        _check_matrix("tau", tau)
        if len(tau) != len(real):
            raise ValueError(f"Got {len(real)} real rows and {len(tau)} rows of tau; pair every row with its own.")
        _finite_mean("tau", tau)
    return _finite_mean("real", real)


def check_generated(fake: Tensor, tau: Tensor | None, width: int, tau_width: int) -> None:
    """Raises ValueError unless fake is [n >= 1, width] and tau [n, tau_width], or None where tau_width is 0."""
    if not width:
        raise ValueError("This distance has no reference yet: call fit(real) or load one.")
    _check_matrix("fake", fake)
    if tau is not None:
        _check_matrix("tau", tau)
    if fake.shape[1] != width or not len(fake):
        raise ValueError(
            f"Got generated features {tuple(fake.shape)}, expected [n >= 1, {width}] as in the reference: embed both "
            "with the same encoder."
        )
    if (0 if tau is None else tau.shape[1]) != tau_width or (tau is not None and len(tau) != len(fake)):
        expected = f"[{len(fake)}, {tau_width}]" if tau_width else "None: the reference is marginal"
        raise ValueError(
            f"Got tau {None if tau is None else tuple(tau.shape)} for {len(fake)} generated rows, expected {expected}. "
            "Fit and compare with the same kind of condition."
        )


def located(real: Rows, tau: Rows | None, ranks: Ranks, *, residual: bool) -> dict[str, Tensor]:
    """The `center` [d] of real rows, in float64, and of residuals the `slope` A [c, d] by which tau moves it.

    Raises ValueError as `checked_mean` does.
    """
    mean = checked_mean(real, tau)
    if not residual:
        return {"center": mean}
    slope, center = (mean.new_empty(0), mean) if tau is None else regression(real, tau, mean, ranks)
    return {"center": center, "slope": slope}


def regression(real: Rows, tau: Rows, mean: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """What tau tells of real rows, linearly: tau A + b, A [c, d] and b [d] in float64, in one pass over the rows.

    Ridge regression, penalty RIDGE times the mean variance of tau's columns. `mean` [d] is that of the real rows.
    """
    share, (c, d) = ranks.share(len(real)), (tau.shape[1], real.shape[1])
    total, square, cross = (mean.new_zeros(*size) for size in ((c,), (c, c), (c, d)))
    for phi, t in zip(row_blocks(real, share=share), row_blocks(tau, share=share), strict=True):
        t = t.to(mean)
        total, square, cross = total + t.sum(0), square + t.T @ t, cross + t.T @ (phi.to(mean) - mean)
    middle, square, cross = (ranks.sum(part) / len(real) for part in (total, square, cross))
    spread = square - middle[:, None] * middle
    rounding = torch.finfo(mean.dtype)
    least = rounding.eps**0.5 * square.diagonal().mean().item() + rounding.tiny  # columns that never vary tell nothing
    penalty = max(RIDGE * spread.diagonal().mean().item(), least)
    slope = torch.linalg.solve(spread + penalty * torch.eye(c).to(mean), cross)
    return slope, mean - middle @ slope


def true_median(centred: Tensor, center: Tensor, count: int, *, needed: bool) -> float:
    """The median distance between two of `count` real rows less their center; 0 when it is no more than rounding.

    Raises ValueError when it is 0 and `needed`.
    """
    median = median_distance(centred)
    if not math.isfinite(median):
        raise ValueError(
            f"The real rows reach {centred.abs().max():.2g}, too large to square in {center.dtype}: scale the features "
            "down, or give them as float64."
        )
    # Distances below the rounding of the raw features are rounding, not data.
    median = median if median > 4 * torch.finfo(center.dtype).eps * float(center.norm()) else 0.0
    if needed and not median:
        raise ValueError(
            f"The median distance between two of the {count} real rows is 0, so the kernel has no bandwidth: "
            "most rows coincide. Check that the encoder sees the images and that the data set is not one image."
        )
    return median


class JointRows:
    """Real rows and their conditions seen as joint rows Phi [r, d + c], on the device and in the type of `center`."""

    def __init__(
        self, real: Rows, tau: Rows | None, center: Tensor, join: Callable[[Tensor, Tensor | None], Tensor]
    ) -> None:
        self._real, self._tau, self._center, self._join = real, tau, center, join
        self.shape = (len(real), real.shape[1] + (tau.shape[1] if tau is not None else 0))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        tau = None if self._tau is None else self._tau[index]
        return self._join(self._real[index].to(self._center), tau)


def join(phi: Tensor, tau: Tensor | None, center: Tensor, beta: Tensor, slope: Tensor | None = None) -> Tensor:
    """Phi = [phi - center - tau slope | beta tau]. Centred, since |a|^2 + |b|^2 - 2ab cancels when the mean is large.

    With a slope, that of the regression of real features on their conditions, it is the same rows in other coordinates:
    laws that agree are the same, but a picture of another condition is off alike whatever its own is.
    """
    centred = phi - center.to(phi)
    if tau is None:
        return centred
    tau = tau.detach().to(phi)
    centred = centred if slope is None else centred - tau @ slope.to(phi)
    return torch.cat([centred, tau * beta.to(phi.dtype)], dim=1)


def _check_matrix(name: str, rows: Rows) -> None:
    if len(rows.shape) != 2:
        raise ValueError(
            f"Got {name} of shape {tuple(rows.shape)}, expected a matrix [rows, columns]: flatten it first."
        )


def _finite_mean(name: str, rows: Rows) -> Tensor:
    """The mean row in float64, after checking that every entry is finite."""
    total: Tensor | None = None
    seen = 0
    for block in row_blocks(rows):
        bad = ~torch.isfinite(block).all(dim=1)
        if bad.any():
            first = seen + int(bad.nonzero()[0, 0])
            raise ValueError(
                f"Found {int(bad.sum())} rows with a NaN or an infinity in {name} (the first is row {first}): find the "
                "image or the encoder precision that makes them."
            )
        total = block.double().sum(dim=0) if total is None else total + block.double().sum(dim=0)
        seen += len(block)
    assert total is not None
    return total / seen
