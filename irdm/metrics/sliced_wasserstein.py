"""Sliced Wasserstein ratios: SW_2(gen, real) / SW_2(fresh real, real), by encoder (Feng et al. 2026, SW_r14).

Letters: n, m rows, d features, p directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from irdm.conditions import Unconditional
from irdm.metrics.base import EvaluationConfig, Pool, Pools, check_tables
from irdm.metrics.ratio import ratio
from irdm.metrics.score import Estimate, Score
from irdm.metrics.tables import Real, Table
from irdm.ops.sliced import unit_directions, wasserstein2_squared_sorted

COARSE = 128  # directions that measure the spread over rows; the score itself uses all
COLUMNS = 256  # directions at once: memory, not results


@dataclass(frozen=True)
class SlicedTarget:
    """The sorted projections of one real sample, so that scoring a sample sorts only that sample.

    Features are centred on the real mean first: a large common mean would cost float32 digits. Directions are shared by
    all samples and drawn on the CPU.
    """

    center: Float[Tensor, " d"]
    directions: Float[Tensor, "d p"]
    sorted: Float[Tensor, "m p"]

    @classmethod
    def of(cls, name: str, rows: Float[Tensor, "m d"], directions: int, seed: int) -> SlicedTarget:
        """Project and sort the real rows. Raises ValueError naming the encoder `name` when they are all the same."""
        center = rows.mean(0)
        unit = unit_directions(rows.shape[1], directions, seed).to(rows)
        projections = _sorted(unit.T @ (rows - center).T)
        if torch.equal(projections[0], projections[-1]):
            raise ValueError(f"Encoder '{name}' gives every real image the same features; take it out or refit it.")
        return cls(center, unit, projections)

    def distance(self, rows: Float[Tensor, "n d"]) -> float:
        """SW_2 = sqrt of the mean over directions of the squared W_2."""
        rows = rows.to(self.center) - self.center
        parts = zip(self.directions.split(COLUMNS, 1), self.sorted.split(COLUMNS, 1), strict=True)
        squares = [wasserstein2_squared_sorted(_sorted(unit.T @ rows.T), real) for unit, real in parts]
        return math.sqrt(torch.cat(squares).mean().item())

    def quick(self, blocks: Iterable[Tensor]) -> Callable[[Int64[Tensor, " n"]], float]:
        """The same over the first 128 directions."""
        unit, real = self.directions[:, :COARSE], self.sorted[:, :COARSE]
        seen = torch.cat([unit.T @ (block.to(self.center) - self.center).T for block in blocks], dim=1)
        return lambda rows: math.sqrt(wasserstein2_squared_sorted(_sorted(seen[:, rows]), real).mean().item())


def _sorted(projections: Float[Tensor, "p n"]) -> Float[Tensor, "n p"]:
    return projections.sort(dim=1).values.T.contiguous()  # sorting contiguous rows is three times as fast


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


def _sliced(label: str, says: str, pools: Pools, target: Pool, fresh: Pool, held_out, config) -> Score:
    rows = target.sample(config.rows, "target", config.seed)

    def targets(name: str) -> SlicedTarget:
        return SlicedTarget.of(name, target.table.features[name][rows], config.directions, config.seed)

    return ratio(label, says, targets, pools.generated, fresh, held_out, config, most=len(rows), law=pools.law)


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
