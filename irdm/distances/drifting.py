"""Drifting: each generated row is asked to move along a field of attraction to real and repulsion from generated rows.

Dimension letters: g groups; n generated rows and p real rows of a group; t = n + p targets; k rows of a rank;
d features.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import MinLen
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from irdm.distances.base import Distance
from irdm.distances.config import DistanceConfig, Factor
from irdm.distances.pool import PoolConfig
from irdm.distributed import ALONE, Ranks
from irdm.ops.rows import Rows

_SELF = 100.0  # added to a row's scaled distance to itself: it neither attracts nor repels itself


class DriftingConfig(DistanceConfig, PoolConfig):
    """Drifting loss against a fresh real batch; use it without self-normalisation."""

    kind: Literal["drifting"] = "drifting"

    radii: Annotated[tuple[Factor, ...], MinLen(1)] = (0.2, 0.05, 0.02)
    """Temperatures of the affinity, in units of the mean distance."""

    group_size: PositiveInt | None = None
    """Generated rows that see each other, in batch order; None makes one group. Memory grows with its square."""

    def build(self) -> Drifting:
        """A distance without a reference: fit it, or load one."""
        return Drifting(self)


class Drifting(Distance[DriftingConfig]):
    """L = mean |x / s - stop_grad(x / s + drift)|^2, with one drift per radius, each of unit root mean square.

    Its value is the squared size of the drifts, not a distance that falls to zero; only its gradient has a meaning.
    Source: Deng et al., arXiv 2602.04770.
    """

    Config = DriftingConfig
    owned = ("pool",)

    pool: Tensor

    def _fit(self, real: Rows, seed: int, ranks: Ranks) -> None:
        self.pool = self.config.keep(real, seed)

    def _compare(self, fake: Float[Tensor, "n w"], step: int | None, ranks: Ranks) -> Float[Tensor, ""]:
        size = self.config.group_size or len(fake)
        if len(fake) % size:
            raise ValueError(
                f"Got {len(fake)} generated rows, expected a multiple of group_size={size}: change the rollout or "
                "group_size."
            )
        groups = fake.unflatten(0, (-1, size))
        real = torch.stack([self.config.draw(self.pool, size, self.seed, step, group) for group in range(len(groups))])
        return drifting_loss(groups, real.to(fake), self.config.radii, ranks)


def drifting_loss(
    generated: Float[Tensor, "g n d"], real: Float[Tensor, "g p d"], radii: tuple[float, ...], ranks: Ranks = ALONE
) -> Float[Tensor, ""]:
    """The loss of `Drifting`; scale and sizes of the drifts are taken over all groups together.

    Ranks share the rows that drift; each sees all targets.
    """
    n = generated.shape[1]
    share = ranks.share(n)
    rows = generated[:, share]
    with torch.no_grad():
        targets = torch.cat([generated, real], dim=1)
        distances = torch.cdist(rows, targets)
        scale = ranks.sum(distances.sum()) / (len(generated) * n * targets.shape[1])
        unit = (scale / math.sqrt(generated.shape[2])).clamp(min=1e-3)
        distances = distances / scale.clamp(min=1e-3)
        distances[:, :, share].diagonal(dim1=1, dim2=2).add_(_SELF)
        own, targets = rows / unit, targets / unit
        goal = own + sum(_drift(own, targets, distances / -radius, n, ranks) for radius in radii)
    return ranks.sum((rows / unit - goal).square().sum()) / generated.numel()


def _drift(
    own: Float[Tensor, "g k d"], targets: Float[Tensor, "g t d"], logits: Float[Tensor, "g k t"], n: int, ranks: Ranks
) -> Float[Tensor, "g k d"]:
    """The drift of one radius for k of n rows: to the real targets, from the generated ones, root mean square 1."""
    columns = logits.new_zeros(ranks.size, *targets.shape[:2])
    columns[ranks.rank] = logits.logsumexp(dim=1)
    over_rows = (logits - ranks.sum(columns).logsumexp(dim=0)[:, None]).exp()
    affinity = (logits.softmax(dim=2) * over_rows).clamp(min=1e-6).sqrt()
    negative, positive = affinity[:, :, :n], affinity[:, :, n:]
    coefficients = torch.cat(
        [-negative * positive.sum(dim=2, keepdim=True), positive * negative.sum(dim=2, keepdim=True)], dim=2
    )
    force = coefficients @ targets - coefficients.sum(dim=2, keepdim=True) * own
    size = ranks.sum(force.square().sum()) / (len(own) * n * own.shape[2])
    return force / size.sqrt().clamp(min=1e-4)
