"""Frechet distance between the Gaussians of two feature tables: FID for Inception, FD-DINOv2 and so on for the others.

    FD = |m - m_r|^2 + tr S + tr S_r - 2 tr (S_r^1/2 S S_r^1/2)^1/2      (Heusel et al., 2017)

All in float64, from streamed moments with unbiased covariances. A sample's FD exceeds that of its distribution by about
b / n (Chong and Forsyth, 2020): compare at one n only, beside fresh real images at that n. With fewer rows than
dimensions the covariance is singular; the value is still the exact distance of the two sample Gaussians, and the
result carries a warning. For a generator as good as real the distance is a degenerate statistic, of which the jackknife
counts a part twice; the ratio knows how large it is (`irdm.metrics.ratio`).

Letters: n rows, d features, k folds, b draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from irdm.metrics.base import BLOCK, EvaluationConfig, Pools
from irdm.metrics.intervals import folds, jackknife, log_interval, score_of, standard_error, tightened
from irdm.metrics.ratio import FREEDOM, moved, ratio
from irdm.metrics.score import Score
from irdm.metrics.tables import Picked, Real, Table, published
from irdm.ops.gaussian import Moments, frechet_distance, symmetric_root
from irdm.ops.rows import Rows, row_blocks

NAMES = {"inception": "FID", "dinov2_224": "FD-DINOv2"}
"""What the distance is called in the literature; other encoders get FD-<encoder>."""

AXES = 128  # principal axes that measure the spread over rows; the score itself uses all dimensions


def frechet_distances(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """`frechet_distance` of all judged rows by encoder, beside val rows; and `frechet_ratio`, a ratio as the others.

    Distances under different encoders have no common scale, so there is no mean of them. The notes of an encoder say
    the `name` of its distance, the `bias` b / n as the jackknife estimates it, `dimensions`, and a `warning` where
    there are fewer rows than dimensions. The control takes val rows, as many as were judged where there are as many.
    """
    pools, size = Pools.of(generated, real), len(generated)
    fresh, fold = pools.val.sample(size, "frechet", config.seed), folds(size, config.seed)
    targets = {name: FrechetTarget.of(real.moments[name]) for name in generated.features}
    says = "Frechet distance to train, over that of fresh real images: 1 is as good as real, lower is better."
    most = max(target.count for target in targets.values())
    over = ratio(
        "FDr", says, targets.__getitem__, pools.generated, pools.val, real.held_out, config, most=most, law=pools.law
    )
    distances, spreads, controls, details, n = {}, {}, {}, {}, over.notes["rows"]
    for name, rows in generated.features.items():
        target, found = targets[name], over.encoders[name].notes
        picked = [Picked(rows, (fold == k).nonzero()[:, 0]) for k in range(int(fold.max()) + 1)]
        parts = [Moments.of(row_blocks(part, BLOCK)) for part in picked]
        value = target.to(_merged(parts))
        without = torch.tensor([target.to(_merged([p for p in parts if p is not left_out])) for left_out in parts])
        real_draw = (found["real_spread"] * found["real_distance"] * n / size) ** 2
        distances[name] = tightened(jackknife(value, without.double()), real_draw / (1 + 2 * n / target.count))
        own = (standard_error(distances[name]) / value) ** 2 if value > 0 else 0.0
        spreads[name] = moved(own, real_draw / value**2) if value > 0 else 0.0
        controls[name] = target.to(Moments.of(row_blocks(Picked(real.val.features[name], fresh), BLOCK)))
        dim = len(target.real.mean)
        details[name] = {
            "name": published(NAMES[name], generated, real) if name in NAMES else f"FD-{name}",
            "bias": (len(parts) - 1) * (without.mean().item() - value),
            "dimensions": dim,
            "warning": _warning(size, target.count, dim),
        }
    distance = score_of(
        "Frechet distance",
        "lower",
        "Squared Frechet distance to train of Gaussians of the same moments (FID under Inception); lower is better.",
        distances,
        real.held_out,
        controls=controls,
        limits=(0.0, math.inf),
        details=details,
        means=False,
        notes={"rows": size, "control_rows": len(fresh), "law": pools.law},
    )
    judged = {  # as the ratio has it: the chance of the same distance in draws of one size, and how far draws move
        name: found.model_copy(
            update={
                "p_real": over.encoders[name].p_real,
                "ci95": log_interval(found.value, spreads[name], FREEDOM + len(found.replicates) - 1),
            }
        )
        for name, found in distance.encoders.items()
    }
    return {"frechet_distance": distance.model_copy(update={"encoders": judged}), "frechet_ratio": over}


@dataclass(frozen=True)
class FrechetTarget:
    """The moments of all train rows, the root of their covariance, and its largest principal axes, largest last."""

    real: Moments
    root: Float64[Tensor, "d d"]
    axes: Float64[Tensor, "d q"]
    spread: Float64[Tensor, " q"]
    power: ClassVar[int] = 1

    @classmethod
    def of(cls, real: Moments) -> FrechetTarget:
        """From the moments of the real rows."""
        values, vectors = torch.linalg.eigh(real.covariance)
        return cls(real, symmetric_root(real.covariance), vectors[:, -AXES:], values[-AXES:].clamp(min=0))

    @property
    def count(self) -> int:
        """Real rows."""
        return self.real.count

    def to(self, sample: Moments) -> float:
        """The distance of the moments of a sample."""
        moments = (sample.mean, sample.covariance, self.real.mean, self.real.covariance, self.root)
        return frechet_distance(*(moment.to(self.root) for moment in moments), jitter=0.0).item()

    def distance(self, rows: Tensor) -> float:
        """The distance of a sample."""
        return self.to(Moments.of(rows.split(BLOCK)))

    def distances(self, table: Rows, draws: Sequence[Int64[Tensor, " _"]]) -> Float64[Tensor, " b"]:
        """The same of many draws from one table, along the 128 largest principal axes of the real rows.

        What the first draw has beyond these axes is added to all: they hold nearly all of the spread, not of the sum.
        """
        seen = torch.cat([(block.to(self.root) - self.real.mean) @ self.axes for block in row_blocks(table, BLOCK)])
        centre, real, root = torch.zeros_like(self.spread), self.spread.diag(), self.spread.sqrt().diag()
        found = []
        for draw in draws:
            sample = Moments.of([seen[draw]])
            found.append(frechet_distance(sample.mean, sample.covariance, centre, real, root, jitter=0.0).item())
        beyond = self.distance(table[draws[0]]) - found[0] if len(self.spread) < len(self.real.mean) else 0.0
        return torch.tensor(found, dtype=torch.float64) + beyond


def _merged(parts: Sequence[Moments]) -> Moments:
    return sum(parts[1:], parts[0])


def _warning(rows: int, reference_rows: int, dimensions: int) -> str | None:
    """What must be said beside the value when a covariance cannot have full rank."""
    few = {"generated": rows, "reference": reference_rows}
    said = [f"{count} {side} rows for {dimensions} dimensions" for side, count in few.items() if count <= dimensions]
    if not said:
        return None
    return f"{' and '.join(said)}: the covariance is singular and the bias is large; compare at equal n only."
