"""Distances that meet a fresh batch of real rows at each step, drawn from a pool they own."""

from __future__ import annotations

from typing import TypeVar

from pydantic import PositiveInt
from torch import Tensor

from irdm.distances.base import Distance, DistanceConfig
from irdm.ops.rows import Rows, sample_rows
from irdm.ops.sampling import generator_for, sample_indices


class PoolConfig(DistanceConfig):
    """What the distances with a pool have in common."""

    pool_rows: PositiveInt = 50_000
    """Random real rows kept to draw from."""

    batch: PositiveInt | None = None
    """Real rows drawn at each step; None draws as many as are generated. Never more than the pool holds."""


P = TypeVar("P", bound=PoolConfig)


class PoolDistance(Distance[P]):
    """A distance that owns a pool [p, d + c] and draws from it with a CPU generator seeded by (seed, step)."""

    owned = ("pool",)

    pool: Tensor

    def _fit(self, real: Rows, seed: int) -> None:
        self.pool = sample_rows(real, self.config.pool_rows, generator_for(seed, "pool"))

    def _draw(self, generated: int, *keys: int) -> Tensor:
        """Distinct rows of the pool for the keys (step, ...): the same on every rank and in every run."""
        generator = generator_for(int(self.seed), "batch", *keys)
        indices = sample_indices(len(self.pool), self.config.batch or generated, generator)
        return self.pool[indices.to(self.pool.device)]
