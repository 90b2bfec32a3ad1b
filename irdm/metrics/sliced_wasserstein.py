"""Sliced Wasserstein ratios: SW_2(gen, real) / SW_2(fresh real, real), by encoder (Feng et al. 2026, SW_r14).

Letters: n, m rows, d features, p directions, b draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from irdm.conditions import Unconditional
from irdm.metrics.base import BLOCK, EvaluationConfig, Pool, Pools, check_tables
from irdm.metrics.ratio import ratio
from irdm.metrics.score import Estimate, Score
from irdm.metrics.tables import Real, Table
from irdm.ops.gaussian import Moments
from irdm.ops.rows import Rows, row_blocks
from irdm.ops.sliced import quantile_means, sorted_rows, unit_directions

COARSE = 512  # directions that measure the spread over rows; the score itself uses all
COLUMNS = 128  # directions at once: memory, not results
FLOOR = 0.01  # of the mean variance: a direction in which real images hardly vary must not decide alone


@dataclass(frozen=True)
class SlicedTarget:
    """The sorted projections of one real sample, so that scoring a sample sorts only that sample.

    Features are centred on the real mean first: a large common mean would cost float32 digits. Directions are shared by
    all samples and drawn on the CPU.
    """

    center: Float[Tensor, " d"]
    directions: Float[Tensor, "d p"]
    sorted: Float[Tensor, "p m"]
    power: ClassVar[int] = 2

    @classmethod
    def of(cls, name: str, rows: Float[Tensor, "m d"], directions: int, seed: int) -> SlicedTarget:
        """Project and sort the real rows. Raises ValueError naming the encoder `name` when they are all the same."""
        center = rows.mean(0)
        unit = unit_directions(rows.shape[1], directions, seed).to(rows)
        projections = sorted_rows(unit.T @ (rows - center).T)
        if torch.equal(projections[:, 0], projections[:, -1]):
            raise ValueError(f"Encoder '{name}' gives every real image the same features; take it out or refit it.")
        return cls(center, unit, projections)

    @property
    def count(self) -> int:
        """Rows of the real sample."""
        return self.sorted.shape[1]

    def distance(self, rows: Float[Tensor, "n d"]) -> float:
        """SW_2 = sqrt of the mean over directions of the squared W_2."""
        rows = rows.to(self.center) - self.center
        squares = [
            _squared(sorted_rows(unit.T @ rows.T), *quantile_means(real, len(rows)))
            for unit, real in self._columns(self.directions.shape[1])
        ]
        return math.sqrt(torch.cat(squares).mean().item())

    def distances(self, table: Rows, draws: Sequence[Int64[Tensor, " _"]]) -> Float64[Tensor, " b"]:
        """The same of many draws of rows, over the first 512 directions; a table is projected once for all."""
        most, device = min(COARSE, self.directions.shape[1]), self.center.device
        blocks = [block.to(self.center) - self.center for block in row_blocks(table, BLOCK)]
        draws = [draw.to(device) for draw in draws]
        sums = torch.zeros(len(draws), dtype=torch.float64, device=device)
        for unit, real in self._columns(most):
            values = torch.cat([unit.T @ block.T for block in blocks], dim=1)
            means = {n: quantile_means(real, n) for n in {len(draw) for draw in draws}}
            for number, draw in enumerate(draws):
                rows = sorted_rows(values.index_select(1, draw))
                sums[number] += _squared(rows, *means[len(draw)]).sum()
        return (sums / most).sqrt().cpu()

    def _columns(self, most: int) -> Iterator[tuple[Float[Tensor, "d p"], Float[Tensor, "p m"]]]:
        for start in range(0, most, COLUMNS):
            columns = slice(start, min(start + COLUMNS, most))
            yield self.directions[:, columns], self.sorted[columns]


def _squared(
    rows: Float[Tensor, "p n"], means: Float[Tensor, "p n"], within: Float[Tensor, " p"]
) -> Float[Tensor, " p"]:
    """Squared W_2 of sorted rows, by `quantile_means` of the others."""
    return (rows - means).square().mean(1) + within


def sw_ratio(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """SW_2(gen, train) / SW_2(val, train). Memorised training images score BELOW 1 here.

    The mean of SW_2 over draws and not the root of the mean square: the published score is SW_2 of one draw.
    """
    pools = Pools.of(generated, real)
    says = (
        "Sliced Wasserstein distance to train, over that of fresh real images: 1 is as good as real, lower is better."
    )
    return {"sw_ratio": _sliced("SW_r", says, pools, pools.train, pools.val, real.held_out, config)}


def sw_ratio_unseen(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """SW_2(gen, val) / SW_2(train, val): the two real sides change places, so memorising cannot push it below 1."""
    pools = Pools.of(generated, real)
    says = (
        "Sliced Wasserstein distance to real images that nobody trained on, over that of train images: copies of train "
        "score 1 here, lower is better."
    )
    score = _sliced("SW_r", says, pools, pools.val, pools.train, real.held_out, config)
    return {"sw_ratio_unseen": score.model_copy(update={"label": f"{score.label} unseen"})}


def whitened_ratio(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """SW_2(gen, train) / SW_2(val, train) of whitened features: every direction of features counts alike.

    In SW_r a direction in which real images differ most, such as brightness, makes up the distance of real images too,
    and hides what is small beside it. Here features are divided by the root of the covariance of train plus 1% of its
    mean variance.
    """
    moments = {name: real.moments[name] for name in generated.features}
    whitened = replace(real, train=_whitened(real.train, moments), val=_whitened(real.val, moments))
    pools = Pools.of(_whitened(generated, moments), whitened)
    says = (
        "Sliced Wasserstein distance to train of whitened features, over that of fresh real images: 1 is as good as "
        "real, lower is better."
    )
    return {"whitened_ratio": _sliced("SW_w", says, pools, pools.train, pools.val, real.held_out, config)}


def _sliced(label: str, says: str, pools: Pools, target: Pool, fresh: Pool, held_out, config) -> Score:
    rows = target.sample(config.rows, "target", config.seed)

    def targets(name: str) -> SlicedTarget:
        return SlicedTarget.of(name, target.table.features[name][rows], config.directions, config.seed)

    return ratio(label, says, targets, pools.generated, fresh, held_out, config, most=len(rows), law=pools.law)


class WhitenedDistance:
    """The numerator of `whitened_ratio` for many tables: the targets of one real side, prepared once."""

    def __init__(self, generated: Table, real: Real, config: EvaluationConfig) -> None:
        """`generated` decides the law of draws."""
        self._moments = {name: real.moments[name] for name in generated.features}
        pool = Pools.of(generated, real).train
        rows, table = pool.sample(config.rows, "target", config.seed), _whitened(real.train, self._moments)
        self._targets = {
            name: SlicedTarget.of(name, table.features[name][rows], config.directions, config.seed)
            for name in self._moments
        }

    def __call__(self, generated: Table) -> dict[str, float]:
        """SW_2 of all rows of a table to train, by encoder; memory is that of one encoder."""
        table, every = _whitened(generated, self._moments), torch.arange(len(generated))
        return {name: target.distance(table.features[name][every]) for name, target in self._targets.items()}


def _whitened(table: Table, moments: Mapping[str, Moments]) -> Table:
    return replace(table, features={name: _Whitened(table.features[name], found) for name, found in moments.items()})


class _Whitened:
    """Rows that are centred and whitened as they are asked for."""

    def __init__(self, rows: Rows, moments: Moments) -> None:
        values, vectors = torch.linalg.eigh(moments.covariance)
        scale = (values.clamp(min=0) + FLOOR * values.mean()).rsqrt()
        self._rows, self._mean, self._axes = rows, moments.mean, vectors * scale
        self.shape = rows.shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        rows = self._rows[index]
        return ((rows.to(self._mean) - self._mean) @ self._axes).to(rows.dtype)


Features = Tensor | Mapping[str, Tensor]


@dataclass
class SlicedWassersteinRatio:
    """The ratio of plain feature tensors: [n, d], or {encoder: [n, d]} for the mean over encoders.

        ratio = SlicedWassersteinRatio().fit(train, fresh)
        ratio(generated).value       # 1: as good as fresh real images; .ci95, .control, .replicates

    or batch by batch, as in torchmetrics: `update(features, "train")`, `update(features, "fresh")` and
    `update(features)` for generated ones, then `compute()`; `reset()` forgets the generated ones.
    """

    directions: int = 1024
    rows: int = 16384
    seed: int = 0
    _parts: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict, repr=False)

    def fit(self, train: Features, fresh: Features) -> SlicedWassersteinRatio:
        """Take the real side: images that may have been trained on, and images of the same kind that were not."""
        self._parts = {}
        self.update(train, "train")
        self.update(fresh, "fresh")
        return self

    def __call__(self, generated: Features) -> Estimate:
        """The ratio of these rows. Raises ValueError for too few, unlike or non-finite rows."""
        self.reset()
        self.update(generated)
        return self.compute()

    def update(self, features: Features, kind: Literal["train", "fresh", "generated"] = "generated") -> None:
        """Add rows of one kind."""
        if kind not in ("train", "fresh", "generated"):
            raise ValueError(f"kind is {kind!r}; expected 'train', 'fresh' or 'generated'.")
        rows = {"features": features} if isinstance(features, Tensor) else dict(features)
        self._parts.setdefault(kind, []).append({name: part.detach() for name, part in rows.items()})

    def reset(self) -> None:
        """Forget the generated rows; the real side stays."""
        self._parts.pop("generated", None)

    def compute(self) -> Estimate:
        """The ratio of the rows so far. Raises ValueError when a kind is missing or rows do not fit together."""
        if missing := [kind for kind in ("train", "fresh", "generated") if kind not in self._parts]:
            raise ValueError(f"There are no {' and no '.join(missing)} rows yet; give them with update or fit.")
        train, fresh, generated = (self._table(kind) for kind in ("train", "fresh", "generated"))
        if odd := sorted(set(train.features) ^ set(fresh.features) | set(train.features) ^ set(generated.features)):
            raise ValueError(f"Encoders {odd} are not in train, fresh and generated alike; embed all with all of them.")
        real = Real(train, fresh, {}, (), {})
        check_tables(generated, real)
        config = EvaluationConfig(directions=self.directions, rows=self.rows, seed=self.seed)
        mean = sw_ratio(generated, real, config)["sw_ratio"].mean
        assert mean is not None
        return mean

    def _table(self, kind: str) -> Table:
        parts = self._parts[kind]
        features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Table(features, Unconditional(len(next(iter(features.values())))))
