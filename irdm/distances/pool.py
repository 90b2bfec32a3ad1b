"""A pool of real rows from which a distance draws a fresh batch at each step."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor

from irdm.config import Config
from irdm.ops.rows import Rows, sample_rows
from irdm.ops.sampling import generator_for, sample_indices, sent


class PoolConfig(Config):
    """How many real rows are kept, and how many drawn. The draws are seeded by (seed, step), on the CPU."""

    pool_rows: PositiveInt = 50_000
    """Random real rows kept to draw from."""

    batch: PositiveInt | None = None
    """Real rows drawn at each step; None draws as many as are generated. Never more than the pool holds."""

    def keep(self, real: Rows, seed: int) -> Tensor:
        """The pool [p, w]."""
        return sample_rows(real, self.pool_rows, generator_for(seed, "pool"))

    def draw(self, pool: Tensor, generated: int, seed: Tensor, step: int | None, *keys: int) -> Tensor:
        """Distinct rows of the pool for a step, the same on every rank and in every run; all of them for step None."""
        if step is None:
            return pool
        indices = sample_indices(len(pool), self.batch or generated, generator_for(int(seed), "batch", step, *keys))
        return pool[sent(indices, pool.device)]
