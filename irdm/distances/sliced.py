"""Sliced Wasserstein: optimal transport along fresh random lines."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from irdm.distances.base import Distance, DistanceConfig
from irdm.distances.pool import PoolConfig
from irdm.ops.rows import Rows
from irdm.ops.sampling import seed_for
from irdm.ops.sliced import sliced_wasserstein2_squared, unit_directions


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

    def _fit(self, real: Rows, seed: int) -> None:
        self.pool = self.config.keep(real, seed)

    def _compare(self, fake: Float[Tensor, "n w"], step: int | None) -> Float[Tensor, ""]:
        seed = seed_for(int(self.seed), "directions", step or 0)
        directions = unit_directions(fake.shape[1], self.config.directions, seed, fake.dtype)
        real = self.config.draw(self.pool, len(fake), self.seed, step)
        return sliced_wasserstein2_squared(fake, real, directions)
