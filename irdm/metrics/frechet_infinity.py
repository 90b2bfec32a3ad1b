"""The Frechet distance at infinitely many images: FID-infinity (Chong and Forsyth, 2020), FD-DINOv2-infinity.

A sample's distance exceeds that of its distribution by about b / n, with another b for every generator, so that the
order of two generators may be wrong even at equal n. The judged rows are divided into p random parts of n / p rows, for
p = 1, 2, 3, 4; the line through the mean distance of the parts, by least squares over 1 / n, is read at 1 / n = 0.
Every row counts once at each size, so that the luck of the rows does not tilt the line. (The authors' code takes one
random subset at each of 15 sizes.) Only the generated side is corrected, and only where a part has more rows than there
are dimensions is the line straight; a warning says where not.

Letters: n rows, d features, k folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from irdm.metrics.base import BLOCK, EvaluationConfig, Pools
from irdm.metrics.frechet_distance import FrechetTarget
from irdm.metrics.intervals import folds, jackknife, score_of
from irdm.metrics.score import Score
from irdm.metrics.tables import Picked, Real, Table, published
from irdm.ops.gaussian import Moments
from irdm.ops.rows import Rows, row_blocks

INFINITY = {"inception": "FID-infinity", "dinov2_224": "FD-DINOv2-infinity"}
"""Encoders under which it is reported, and what it is called there."""
PARTS = (1, 2, 3, 4)


def frechet_infinity(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """The distance of all judged rows, extrapolated; under the encoders of `INFINITY` alone, and no mean of the two.

    The interval is the jackknife's of the distance itself, moved by the extrapolation. May be below 0.
    """
    names = [name for name in generated.features if name in INFINITY]
    if not names:
        return {}
    pools, n, seed = Pools.of(generated, real), len(generated), config.seed
    judged, fresh = torch.arange(n), pools.val.sample(n, "frechet", seed)
    replicates, controls, details = {}, {}, {}
    for name in names:
        target, rows = FrechetTarget.of(real.moments[name]), generated.features[name]
        replicates[name] = extrapolated(target.to, rows, judged, seed)
        controls[name] = extrapolated(target.to, real.val.features[name], fresh, seed)
        smallest, dim = n // max(PARTS), rows.shape[1]
        few = f"the smallest parts have {smallest} rows for {dim} dimensions: the line is bent, read it as a hint."
        details[name] = {
            "name": published(INFINITY[name], generated, real),
            "sizes": ", ".join(f"{count} x {n // count}" for count in PARTS),
            "warning": few if smallest <= dim else None,
        }
    score = score_of(
        "Frechet distance at infinite n",
        "lower",
        "The Frechet distance to train that infinitely many images would have, by extrapolation; lower is better.",
        replicates,
        real.held_out,
        controls=controls,
        details=details,
        means=False,
        notes={"rows": n, "control_rows": len(fresh), "law": pools.law},
    )
    return {"frechet_infinity": score}


def extrapolated(
    distance: Callable[[Moments], float], rows: Rows, index: Int64[Tensor, " n"], seed: int
) -> Float64[Tensor, " k"]:
    """The distance of these rows at 1 / n = 0, on the line through those of their parts: replicates of it."""
    sizes, values = [], []
    for count in PARTS:
        part = folds(len(index), seed, count)
        values.append([distance(_moments(rows, index[part == p])) for p in range(count)])
        sizes.append(len(index) / count)
    line = np.polyfit([1 / size for size in sizes], [math.fsum(found) / len(found) for found in values], 1)
    fold = folds(len(index), seed)
    without = [distance(_moments(rows, index[fold != k])) for k in range(int(fold.max()) + 1)]
    return jackknife(float(line[1]), torch.tensor(without, dtype=torch.float64))


def _moments(rows: Rows, index: Int64[Tensor, " k"]) -> Moments:
    return Moments.of(row_blocks(Picked(rows, index), BLOCK))
