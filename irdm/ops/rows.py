"""Rows: a matrix [n, d] that may be larger than memory, read a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from irdm.ops.sampling import sample_indices


@runtime_checkable
class Rows(Protocol):
    """What a distance is fitted on: a tensor, or a store with the same three abilities."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, d)`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        """The rows of a slice or of an int64 index tensor, `[k, d]`."""
        ...


class OneHot:
    """Labels [n] as `Rows` [n, classes], made as they are asked for."""

    def __init__(self, labels: Int64[Tensor, " n"], classes: int):
        self._labels, self.shape = labels, (len(labels), classes)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        return torch.nn.functional.one_hot(self._labels[index], self.shape[1]).float()


Total = Callable[[Tensor], Tensor]
"""Adds a tensor over all processes that share the rows; each gets the sum."""


def alone(x: Tensor) -> Tensor:
    """The total of one process: itself."""
    return x


def share_of(n: int, part: tuple[int, int]) -> slice:
    """The p-th of P contiguous shares of n rows, for part = (p, P): sizes differ by at most one."""
    p, parts = part
    return slice(p * n // parts, (p + 1) * n // parts)


def pair_rows(n: int, part: tuple[int, int]) -> list[slice]:
    """Rows i of the p-th of P shares of the pairs i <= j: a band of long rows and one of short ones, n^2 / 2P pairs."""
    p, parts = part
    return [slice(0, n)] if parts == 1 else [share_of(n, (band, 2 * parts)) for band in (p, 2 * parts - 1 - p)]


def row_blocks(rows: Rows, size: int = 8192, share: slice | None = None) -> Iterator[Tensor]:
    """The rows in order, or those of a share [start, stop), `size` at a time: tensors [<=size, d]."""
    first, last = (0, len(rows)) if share is None else (share.start, share.stop)
    for start in range(first, last, size):
        yield rows[start : min(start + size, last)]


def sample_rows(rows: Rows, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` distinct rows, drawn at random: [min(count, n), d].

    Never the first `count`: a store sorted by path would give few classes. Which rows is random, their order is the
    store's own, so that a store on disk is read forwards.
    """
    return rows[sample_indices(len(rows), count, generator).sort().values]


def squared_distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """|x_i - y_j|^2 as |x|^2 + |y|^2 - 2 x.y, clamped at zero. Centre the rows first: a large common mean cancels."""
    products = torch.addmm(squared_norms(y), x, y.T, alpha=-2)
    return products.add_(squared_norms(x)[:, None]).clamp_(min=0)


def squared_norms(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """|x_i|^2 without a temporary of the size of x."""
    return torch.linalg.vector_norm(x, dim=1).square_()
