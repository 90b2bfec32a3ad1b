"""Seeded k-means: landmarks that cover the data.

Dimension letters: n rows; k centres; d features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from irdm.ops.rows import Total, alone
from irdm.ops.sampling import sample_indices


def kmeans(
    rows: Float[Tensor, "n d"],
    count: int,
    generator: torch.Generator,
    iterations: int = 20,
    block: int = 8192,
    tick: Callable[[], None] = lambda: None,
    share: slice | None = None,
    total: Total = alone,
) -> Float[Tensor, "k d"]:
    """`count` centres [k, d] by Lloyd's iterations from distinct random rows.

    A centre that lost all its rows is moved to a row far from its own centre (the farthest, the next farthest, ...), so
    that every centre stands for some data. Rows that coincide may still give centres that coincide.

    Args:
        rows: [n, d], all in memory; sample a larger store first.
        count: number of centres, at most n.
        generator: CPU generator of the first centres.
        iterations: Lloyd iterations.
        block: rows assigned at once.
        tick: called after each iteration.
        share: the rows that this process assigns, all of them by default.
        total: adds over the processes that share the rows.

    Raises:
        ValueError: when `count` is not in 1..n.
    """
    if not 1 <= count <= len(rows):
        raise ValueError(f"Got {count} centres for {len(rows)} rows; expected between 1 and the number of rows.")
    centres = rows[sample_indices(len(rows), count, generator).to(rows.device)].clone()
    share = slice(0, len(rows)) if share is None else share
    own = rows[share]
    for _ in range(iterations):
        nearest, distances = _assign(own, centres, block)
        sums = torch.zeros_like(centres, dtype=torch.float64)
        for low in range(0, len(own), block):
            sums.index_add_(0, nearest[low : low + block], own[low : low + block].double())
        sizes = total(torch.bincount(nearest, minlength=count))
        centres = (total(sums) / sizes.clamp(min=1)[:, None]).to(rows.dtype)
        empty = (sizes == 0).nonzero()[:, 0]
        if len(empty):
            everyone = distances.new_zeros(len(rows))
            everyone[share] = distances
            centres[empty] = rows[total(everyone).topk(len(empty)).indices]
        tick()
    return centres


def _assign(
    rows: Float[Tensor, "n d"], centres: Float[Tensor, "k d"], block: int
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The nearest centre of each row and the squared distance to it."""
    norms = centres.square().sum(dim=1)
    nearest, distances = [], []
    for low in range(0, len(rows), block):
        part = rows[low : low + block]
        offsets, index = torch.addmm(norms, part, centres.T, alpha=-2).min(dim=1)
        nearest.append(index)
        distances.append(offsets + part.square().sum(dim=1))
    return torch.cat(nearest), torch.cat(distances)
