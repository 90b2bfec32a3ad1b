"""Sliced Wasserstein: optimal transport along fresh random lines."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from irdm.distances.pool import PoolConfig, PoolDistance
from irdm.ops.sampling import seed_for
from irdm.ops.sliced import sliced_wasserstein2_squared, unit_directions


class SlicedWassersteinConfig(PoolConfig):
    """Squared sliced 2-Wasserstein distance to a fresh real batch."""

    kind: Literal["sliced-wasserstein"] = "sliced-wasserstein"

    directions: PositiveInt = 128
    """Random unit directions, fresh at each step."""

    def build(self) -> SlicedWasserstein:
        """A distance without a reference: fit it, or load one."""
        return SlicedWasserstein(self)


class SlicedWasserstein(PoolDistance[SlicedWassersteinConfig]):
    """L = SW_2^2(g, r): the mean over directions of the squared distance between the sorted projections.

    A batch of another size than the generated one is matched quantile by quantile, exactly.
    """

    def _compare(self, fake: Float[Tensor, "n w"], step: int) -> Float[Tensor, ""]:
        seed = seed_for(int(self.seed), "directions", step)
        directions = unit_directions(fake.shape[1], self.config.directions, seed, fake.dtype)
        return sliced_wasserstein2_squared(fake, self._draw(len(fake), step), directions)
