"""Nearest neighbours among rows that may be larger than memory.

Letters: n queries, m references, d numbers a row, k neighbours.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from irdm.ops.rows import Rows, row_blocks

CHUNK = 1024


def nearest_neighbours(
    queries: Rows, references: Rows, k: int = 1, *, own: Int64[Tensor, " n"] | None = None, chunk: int | None = None
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """Euclidean distances to, and numbers of, the k nearest references of each query, nearest first; on the CPU.

    In blocks of `chunk` (1024) x `chunk`, on the device of the references. Candidates are found by matrix products on
    centred rows; the distances of the winners are computed directly, so that a copy is at exactly 0. `own` is the
    reference that each query is itself, and therefore not its neighbour.

    Raises ValueError for empty or non-finite input, widths that differ, or fewer references than neighbours.
    """
    chunk = chunk or CHUNK
    fewest = k if own is None else k + 1
    if not len(queries) or len(references) < fewest or queries.shape[1:] != references.shape[1:]:
        raise ValueError(
            f"Got rows {tuple(queries.shape)} and {tuple(references.shape)}; expected [n, d] and [m, d] with m at "
            f"least {fewest}."
        )
    center = sum(_finite(block).double().sum(0) for block in row_blocks(references, chunk)) / len(references)
    assert isinstance(center, Tensor)
    distances, indices = [], []
    for start in range(0, len(queries), chunk):
        block = _finite(queries[start : min(start + chunk, len(queries))]).to(center.device)
        middle = center.to(block)
        best = block.new_full((len(block), k), torch.inf)
        index = torch.zeros(len(block), k, dtype=torch.int64, device=block.device)
        for number, candidates in enumerate(row_blocks(references, chunk)):
            distance = torch.cdist(block - middle, candidates.to(block) - middle)
            numbers = torch.arange(len(candidates), device=block.device) + number * chunk
            if own is not None:
                distance[numbers == own[start : start + chunk, None].to(block.device)] = torch.inf
            distance, numbers = torch.cat([best, distance], 1), torch.cat([index, numbers.expand(len(block), -1)], 1)
            best, where = distance.topk(k, dim=1, largest=False)
            index = numbers.gather(1, where)
        found = torch.stack([references[column].to(block) for column in index.T], 1)
        exact, order = (block[:, None] - found).norm(dim=2).sort(dim=1, stable=True)
        distances.append(exact.cpu())
        indices.append(index.gather(1, order).cpu())
    return torch.cat(distances), torch.cat(indices)


def _finite(rows: Tensor) -> Tensor:
    if not rows.isfinite().all():
        raise ValueError("Nearest neighbours of rows that hold NaN or infinity; check the images or features first.")
    return rows
