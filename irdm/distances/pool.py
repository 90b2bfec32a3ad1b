"""Distances that meet a fresh batch of real rows at each step, drawn from a pool they own."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from irdm.config import Config
from irdm.distances.base import Distance
from irdm.ops.rows import Rows, sample_rows
from irdm.ops.sampling import generator_for, sample_indices


class PoolFields(Config):
    """What the distances with a pool have in common."""

    pool_rows: PositiveInt = 50_000
    """Random real rows kept to draw from."""

    batch: PositiveInt | None = None
    """Real rows drawn at each step; None draws as many as are generated. Never more than the pool holds."""


class PoolDistance(Distance):
    """A distance that owns a pool [p, d + c] and draws from it with a CPU generator seeded by (seed, step)."""

    pool: Tensor

    def _fit(self, real: Rows, seed: int) -> None:
        self.pool = sample_rows(real, self._fields().pool_rows, generator_for(seed, "pool"))

    def _fields(self) -> PoolFields:
        raise NotImplementedError

    def _draw(self, generated: int, *keys: int) -> Tensor:
        """Distinct rows of the pool for the keys (step, ...): the same on every rank and in every run."""
        count = self._fields().batch or generated
        indices = sample_indices(len(self.pool), count, generator_for(int(self.seed), "batch", *keys))
        return self.pool[indices.to(self.pool.device)]
