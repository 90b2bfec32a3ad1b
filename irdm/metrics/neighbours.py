"""Nearest training neighbours: does the generator copy?

Letters: n queries, m references, d numbers a row.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from irdm.metrics.base import EvaluationConfig, Real, Sample


def nearest_neighbours(
    queries: Float[Tensor, "n d"], references: Float[Tensor, "m d"], chunk: int = 1024
) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """Euclidean distance to, and index of, the nearest reference of each query, in blocks of `chunk` x `chunk`.

    Candidates are found by matrix products on centred rows; the distance of the winner is computed directly, so that a
    copy is at exactly 0. Raises ValueError for empty or non-finite input, or widths that differ.
    """
    if not len(queries) or not len(references) or queries.shape[1:] != references.shape[1:]:
        raise ValueError(f"Got rows {tuple(queries.shape)} and {tuple(references.shape)}; expected [n, d] and [m, d].")
    if not (queries.isfinite().all() and references.isfinite().all()):
        raise ValueError("Nearest neighbours of rows that hold NaN or infinity; check the images or features first.")
    center = references.mean(0)
    indices = []
    for block in queries.split(chunk):
        best = block.new_full((len(block),), torch.inf)
        index = torch.zeros(len(block), dtype=torch.int64, device=block.device)
        for start in range(0, len(references), chunk):
            distance, where = torch.cdist(block - center, references[start : start + chunk] - center).min(1)
            closer = distance < best
            best, index = torch.where(closer, distance, best), torch.where(closer, where + start, index)
        indices.append(index)
    index = torch.cat(indices)
    distances = [
        (block - references[rows]).norm(dim=1)
        for block, rows in zip(queries.split(chunk), index.split(chunk), strict=True)
    ]
    return torch.cat(distances), index


def nearest_neighbour_ratio(generated: Sample, real: Real, config: EvaluationConfig) -> dict:
    """Median pixel distance of generated images to train, over that of test images: copies score 0, fresh reals 1.

    Raises ValueError when half of the test images are in train, where the ratio has no meaning.
    """
    train = real.train.images.flatten(1)
    medians = {
        name: nearest_neighbours(sample.images.flatten(1), train)[0].median().item()
        for name, sample in (("generated", generated), ("test", real.test))
    }
    if medians["test"] == 0:
        raise ValueError(
            "At least half of the test images are also training images: split the data without duplicates."
        )
    return {"value": medians["generated"] / medians["test"], **medians}
