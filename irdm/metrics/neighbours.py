"""Nearest training neighbours: does the generator copy?

Letters: n queries, m references, d numbers a row.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from irdm.metrics.base import EvaluationConfig, Real, Sample
from irdm.metrics.intervals import jackknife
from irdm.ops.rows import Rows, row_blocks


def nearest_neighbours(
    queries: Rows, references: Rows, chunk: int = 1024, *, own: Int64[Tensor, " n"] | None = None
) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """Euclidean distance to, and index of, the nearest reference of each query, in blocks of `chunk` x `chunk`.

    Candidates are found by matrix products on centred rows; the distance of the winner is computed directly, so that a
    copy is at exactly 0. `own` is the reference that each query is itself, and therefore not its neighbour.

    Raises ValueError for empty or non-finite input, widths that differ, or a single reference with `own`.
    """
    if not len(queries) or len(references) < (1 if own is None else 2) or queries.shape[1:] != references.shape[1:]:
        raise ValueError(
            f"Got rows {tuple(queries.shape)} and {tuple(references.shape)}; expected [n, d] and [m, d], with two "
            "references or more when the queries are among them."
        )
    total = sum(_finite(block).double().sum(0) for block in row_blocks(references, chunk))
    distances, indices = [], []
    for start in range(0, len(queries), chunk):
        block = _finite(queries[start : min(start + chunk, len(queries))])
        center = torch.as_tensor(total / len(references)).to(block)
        itself = None if own is None else own[start : start + chunk, None].to(block.device)
        best = block.new_full((len(block),), torch.inf)
        index = torch.zeros(len(block), dtype=torch.int64, device=block.device)
        for number, candidates in enumerate(row_blocks(references, chunk)):
            distance = torch.cdist(block - center, candidates.to(block) - center)
            numbers = torch.arange(len(candidates), device=block.device) + number * chunk
            if itself is not None:
                distance.masked_fill_(numbers == itself, torch.inf)
            distance, where = distance.min(1)
            closer = distance < best
            best, index = torch.where(closer, distance, best), torch.where(closer, numbers[where], index)
        distances.append((block - references[index].to(block)).norm(dim=1))
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def _finite(rows: Tensor) -> Tensor:
    if not rows.isfinite().all():
        raise ValueError("Nearest neighbours of rows that hold NaN or infinity; check the images or features first.")
    return rows


def nearest_neighbour_ratio(generated: Sample, real: Real, config: EvaluationConfig) -> dict:
    """Median pixel distance of generated images to train, over that of test images: copies score 0, fresh reals 1.

    The replicates are those of the jackknife over the generated draws. Raises ValueError when half of the test images
    are in train, where the ratio has no meaning.
    """
    train = real.train.images.flatten(1)
    distances = {
        name: nearest_neighbours(sample.images.flatten(1), train)[0]
        for name, sample in (("generated", generated), ("test", real.test))
    }
    medians = {name: values.median().item() for name, values in distances.items()}
    if medians["test"] == 0:
        raise ValueError(
            "At least half of the test images are also training images: split the data without duplicates."
        )
    value = medians["generated"] / medians["test"]
    draws = distances["generated"].split(len(real.val))
    rest = [torch.cat([draw for draw in draws if draw is not left_out]) for left_out in draws] if len(draws) > 1 else []
    without = torch.tensor([values.median().item() / medians["test"] for values in rest], dtype=torch.float64)
    replicates = jackknife(value, without).tolist() if rest else [value]
    return {"value": value, **medians, "replicates": replicates}
