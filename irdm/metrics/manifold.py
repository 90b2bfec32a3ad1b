"""Precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020), streamed.

Around each row of a sample lies a ball whose radius is the distance to the k-th nearest other row of the sample.

    precision   share of generated rows inside the ball of some real row
    recall      share of real rows inside the ball of some generated row
    density     mean over generated rows of (real balls that hold it) / k
    coverage    share of real rows whose ball holds a generated row

All four depend on the numbers of rows: read them beside the control, fresh real images in the place of as many
generated ones. Balls are open, as in the published code of density and coverage. Distances are those of centred rows,
in float64.

Letters: n generated rows, m real rows, d features, f folds, k neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from irdm.metrics.base import BLOCK, EvaluationConfig, Pools
from irdm.metrics.intervals import folds, jackknife, score_of
from irdm.metrics.score import Score
from irdm.metrics.tables import Picked, Real, Table
from irdm.ops.rows import Rows, row_blocks, squared_distances

SAYS = {
    "precision": "Share of the images that lie among real ones.",
    "recall": "Share of real images that lie among these.",
    "density": "How many real neighbourhoods hold an image, over how many would be usual.",
    "coverage": "Share of real neighbourhoods that hold an image.",
}
ROUNDING = 32 * torch.finfo(torch.float64).eps  # squared distances below this share of the squared norms are zero


def precision_recall_density_coverage(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """The four scores by encoder and their means over encoders; as fresh real images score is best.

    Each pair of rows is compared once per encoder and no n x m matrix is held. At most `manifold_rows` of each side are
    compared, and of the judged ones no more than there are val rows, since the control puts as many of those in their
    place. The intervals are those of the judged rows, given the real ones: jackknife over 10 folds. So is the error of
    the control.

    Raises ValueError naming an encoder with too few rows for `neighbours`.
    """
    pools, seed, most = Pools.of(generated, real), config.seed, config.manifold_rows
    judged = pools.generated.sample(min(most, len(pools.val)), "manifold", seed)
    train = pools.train.sample(most, "manifold", seed)
    fresh = pools.val.sample(len(judged), "manifold", seed)
    replicates: dict[str, dict[str, Tensor]] = {metric: {} for metric in SAYS}
    controls: dict[str, dict[str, Tensor]] = {metric: {} for metric in SAYS}
    for name, rows in generated.features.items():
        manifold = _Manifold(name, Picked(real.train.features[name], train), config.neighbours)
        found = manifold.scores(Picked(rows, judged), folds(len(judged), seed))
        other = manifold.scores(Picked(real.val.features[name], fresh), folds(len(fresh), seed))
        for metric in SAYS:
            replicates[metric][name], controls[metric][name] = jackknife(*found[metric]), jackknife(*other[metric])
    sizes = {"rows": len(judged), "real_rows": len(train), "control_rows": len(fresh)}
    notes = {"neighbours": config.neighbours, **sizes, "law": pools.law}
    return {
        metric: score_of(
            metric,
            "real",  # blurred images lie denser among real ones than real ones do: above the control is not better
            f"{says} As fresh real images score is best.",
            replicates[metric],
            real.held_out,
            controls=controls[metric],
            limits=(0.0, math.inf if metric == "density" else 1.0),
            notes=notes,
        )
        for metric, says in SAYS.items()
    }


class _Manifold:
    """Real rows under one encoder with their radii, against which samples are scored."""

    def __init__(self, name: str, real: Rows, k: int) -> None:
        if not 1 <= k < len(real):
            raise ValueError(f"Encoder '{name}': got k = {k} and {len(real)} real rows; expected 1 <= k < rows.")
        self.name, self.real, self.k = name, real, k
        blocks = [rows.sum(0, dtype=torch.float64) for rows in row_blocks(real, BLOCK)]
        self.center = torch.stack(blocks).sum(0) / len(real)
        self.radii = self._neighbours(real, [torch.arange(len(real))])[:, 0, -1]

    def scores(self, sample: Rows, fold: Int64[Tensor, " n"]) -> dict[str, tuple[float, Float64[Tensor, " f"]]]:
        """Each score of a sample, and its values without each of the folds."""
        members = [(fold == f).nonzero()[:, 0] for f in range(int(fold.max()) + 1)]
        if len(sample) - max(map(len, members)) <= self.k:
            raise ValueError(f"Encoder '{self.name}': {len(sample)} rows are too few for balls of k = {self.k}.")
        near = self._neighbours(sample, members)
        radii = [near.flatten(1).kthvalue(self.k).values]  # with every fold, then without each
        for f in range(len(members)):
            others = [g for g in range(len(members)) if g != f]
            radii.append(near[:, others].flatten(1).kthvalue(self.k).values)
        holders = torch.zeros(len(sample), dtype=torch.int64)  # real balls that hold a generated row
        held = torch.zeros(len(self.real), len(members), dtype=torch.bool)  # does a real ball hold a row of this fold
        recalled = torch.zeros(len(self.real), len(radii), dtype=torch.bool)  # in a generated ball: all, without each
        for rows, real in self._blocks(self.real):
            for g, own in enumerate(members):
                for columns, generated in self._blocks(Picked(sample, own)):
                    distances = _squared_distances(real, generated)
                    inside = distances < self.radii[rows, None]
                    holders[own[columns]] += inside.sum(0).cpu()
                    held[rows, g] |= inside.any(1).cpu()
                    for f, radius in enumerate(radii):
                        if f != g + 1:
                            recalled[rows, f] |= (distances < radius[own[columns]]).any(1).cpu()
        return _summary(holders.double(), held.double(), recalled.double(), members, self.k)

    def _blocks(self, table: Rows) -> Iterator[tuple[slice, Tensor]]:
        """Row numbers and the centred rows, in float64."""
        start = 0
        for rows in row_blocks(table, BLOCK):
            yield slice(start, start + len(rows)), rows.to(self.center) - self.center
            start += len(rows)

    def _neighbours(self, table: Rows, members: Sequence[Int64[Tensor, " _"]]) -> Float64[Tensor, "n f k"]:
        """The k smallest squared distances, upwards, of each row to the others of each fold; infinite where short."""
        near = torch.full((len(table), len(members), self.k), torch.inf, dtype=torch.float64, device=self.center.device)
        for rows, queries in self._blocks(table):
            numbers = torch.arange(rows.start, rows.stop)
            for f, own in enumerate(members):
                for columns, others in self._blocks(Picked(table, own)):
                    distances = _squared_distances(queries, others)
                    distances[(numbers[:, None] == own[columns]).to(distances.device)] = torch.inf
                    candidates = torch.cat([near[rows, f], distances], dim=1)
                    near[rows, f] = candidates.topk(self.k, largest=False).values.sort(dim=1).values
        return near


def _squared_distances(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """|x_i - y_j|^2 of centred rows, exactly 0 for copies."""
    distances = squared_distances(x, y)
    noise = ROUNDING * (x.square().sum(1)[:, None] + y.square().sum(1))
    return distances.masked_fill_(distances < noise, 0.0)


def _summary(
    holders: Float64[Tensor, " n"],
    held: Float64[Tensor, "m f"],
    recalled: Float64[Tensor, "m g"],
    members: Sequence[Int64[Tensor, " _"]],
    k: int,
) -> dict[str, tuple[float, Float64[Tensor, " f"]]]:
    """The scores and their values without each fold, from what each generated and each real row saw."""

    def of_rows(values: Float64[Tensor, " n"]) -> tuple[float, Tensor]:
        total, count = values.sum(), len(values)
        return values.mean().item(), torch.stack([(total - values[own].sum()) / (count - len(own)) for own in members])

    hits = held.sum(1, keepdim=True)
    return {
        "precision": of_rows((holders > 0).double()),
        "recall": (recalled[:, 0].mean().item(), recalled[:, 1:].mean(0)),
        "density": of_rows(holders / k),
        "coverage": ((hits > 0).double().mean().item(), (hits - held > 0).double().mean(0)),
    }
