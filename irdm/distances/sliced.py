"""Sliced Wasserstein: optimal transport along fresh random lines."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from irdm.distances.base import Distance
from irdm.distances.config import DistanceConfig
from irdm.distances.pool import PoolConfig
from irdm.distributed import Ranks
from irdm.ops.rows import Rows
from irdm.ops.sampling import seed_for, sent
from irdm.ops.sliced import projected_squares, unit_directions


class SlicedWassersteinConfig(DistanceConfig, PoolConfig):
    """Squared sliced 2-Wasserstein distance to a fresh real batch."""

    kind: Literal["sliced-wasserstein"] = "sliced-wasserstein"

    directions: PositiveInt = 128
    """Random unit directions, fresh at each step."""

    def build(self) -> SlicedWasserstein:
        """A distance without a reference: fit it, or load one."""
        return SlicedWasserstein(self)


class SlicedWasserstein(Distance[SlicedWassersteinConfig]):
    """L = SW_2^2(g, r): the mean over directions of the squared distance between the sorted projections.

    A batch of another size than the generated one is matched quantile by quantile, exactly.
    """

    Config = SlicedWassersteinConfig
    owned = ("pool",)

    pool: Tensor

    def _fit(self, real: Rows, seed: int, ranks: Ranks) -> None:
        self.pool = self.config.keep(real, seed)

    def _compare(self, fake: Float[Tensor, "n w"], step: int | None, ranks: Ranks) -> Float[Tensor, ""]:
        seed, count = seed_for(int(self.seed), "directions", step or 0), self.config.directions
        own = unit_directions(fake.shape[1], count, seed, fake.dtype)[:, ranks.share(count)]
        real = self.config.draw(self.pool, len(fake), self.seed, step)
        return ranks.sum(projected_squares(fake, real, sent(own, fake.device)).sum(dtype=torch.float64)) / count
