"""Precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020), streamed.

Around each row of a sample lies a ball whose radius is the distance to the k-th nearest other row of the sample.

    precision   share of generated rows inside the ball of some real row
    recall      share of real rows inside the ball of some generated row
    density     mean over generated rows of (real balls that hold it) / k
    coverage    share of real rows whose ball holds a generated row

All four depend on the numbers of rows: read them beside `real_control`, fresh real images in the place of as many
generated ones. Balls are open, as in the published code of density and coverage. Distances are those of centred rows,
in float64.

Letters: n generated rows, m real rows, d features, f folds, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from irdm.metrics.base import BLOCK, Picked, Tables, check_table, finite_blocks, matched, panel
from irdm.metrics.intervals import folds, jackknife, panel_score
from irdm.ops.kernels import squared_distances
from irdm.ops.rows import Rows

METRICS = ("precision", "recall", "density", "coverage")
ROUNDING = 32 * torch.finfo(torch.float64).eps  # squared distances below this share of the squared norms are zero


def precision_recall_density_coverage(
    generated: Tables,
    real: Tables,
    control: Tables | None = None,
    *,
    k: int = 5,
    held_out: Sequence[str] = (),
    partial: bool = False,
    seed: int = 0,
    block: int = BLOCK,
) -> dict[str, dict]:
    """The four scores by encoder and their means over encoders, higher is better.

    Each pair of rows is compared once per encoder and no n x m matrix is held. The intervals are those of the generated
    draw, given the real rows: jackknife over 10 folds.

    Args:
        generated: feature tables of the generator.
        real: feature tables of real images: as many rows as generated ones is the custom, 10,000 or more.
        control: feature tables of fresh real images, of which as many are taken, at random, as were generated.
        k: the neighbour that sets a radius; Naeem et al. advise 5, Kynkaanniemi et al. took 3.
        held_out: encoders that did not train the generator.
        partial: judge the encoders that are there; the result names the `missing` ones.
        seed: of the folds and of the control's rows.
        block: rows compared at once.

    Returns:
        A score for each of precision, recall, density and coverage, with `k` and `rows` {generated, real, control}.

    Raises:
        ValueError: naming an encoder that is missing, of another width, with too few rows for k, or not finite.
    """
    names, missing = panel(list(real), generated, partial)
    replicates: dict[str, dict[str, Tensor]] = {metric: {} for metric in METRICS}
    controls: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    rows = {"generated": len(generated[names[0]]), "real": len(real[names[0]]), "control": 0}
    if control is not None:
        panel(names, control, False)
        rows["control"] = min(rows["generated"], len(control[names[0]]))
    for name in names:
        manifold = _Manifold(name, real[name], k, block)
        for metric, (value, without) in manifold.scores(generated[name], folds(rows["generated"], seed)).items():
            replicates[metric][name] = jackknife(value, without)
        if control is not None:
            fresh = matched(control[name], rows["generated"], seed)
            for metric, (value, _) in manifold.scores(fresh, folds(rows["control"], seed)).items():
                controls[metric][name] = value
    found = {
        metric: panel_score(
            metric, "higher", replicates[metric], held_out, controls[metric] if control is not None else None, missing
        )
        for metric in METRICS
    }
    return {metric: score | {"k": k, "rows": rows} for metric, score in found.items()}


class _Manifold:
    """Real rows under one encoder with their radii, against which samples are scored."""

    def __init__(self, name: str, real: Rows, k: int, block: int) -> None:
        check_table(name, real)
        if not 1 <= k < len(real):
            raise ValueError(f"Encoder '{name}': got k = {k} and {len(real)} real rows; expected 1 <= k < rows.")
        self.name, self.real, self.k, self.block = name, real, k, block
        blocks = [rows.sum(0, dtype=torch.float64) for rows in finite_blocks(name, real, block)]
        self.center = torch.stack(blocks).sum(0) / len(real)
        self.radii = self._neighbours(real, [torch.arange(len(real))])[:, 0, -1]

    def scores(self, sample: Rows, fold: Int64[Tensor, " n"]) -> dict[str, tuple[float, Float64[Tensor, " f"]]]:
        """Each score of a sample, and its values without each of the folds."""
        check_table(self.name, sample, self.real.shape[1])
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
        for rows in finite_blocks(self.name, table, self.block):
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
