"""The objective: one distance per encoder, each put on the scale of its own value, weighted and summed.

    loss = sum_e  weight_e * L_e / stop_grad(max(|L_e|, guard_e))

Dividing by the term's own value gives the gradient of log L_e, so encoders of very different scale pull alike; near
L_e = 0 it would blow up, so the divisor is never less than a share of the real floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from irdm.distances import Distance
from irdm.distributed import ALONE, Ranks
from irdm.ops.threads import InTurn, SideBySide

GUARD = 0.1  # the divisor's least value, as a share of the floor
TINY = 1e-7


@dataclass(frozen=True)
class Loss:
    """`terms`, the weighted sum and each L_e of `names`, and `gradients` {encoder: [n, d]} of this rank's own rows.

    Terms stay on the device until they are read, as `scores` {encoder: L_e} are, which waits for it.
    """

    terms: Float64[Tensor, " terms"]
    names: tuple[str, ...]
    gradients: dict[str, Tensor]

    @property
    def scores(self) -> dict[str, float]:
        return dict(zip(self.names, self.terms[1:].tolist(), strict=True))


class Objective:
    """Distances by encoder, and their floors: the same distance for held-out real data, None where it is not known."""

    def __init__(
        self, distances: Mapping[str, Distance], floors: Mapping[str, float | None], *, self_normalise: bool = True
    ):
        if set(distances) != set(floors):
            raise ValueError(f"Distances are for {sorted(distances)} but floors for {sorted(floors)}.")
        self.distances, self.self_normalise = dict(distances), self_normalise
        self.order = SideBySide()  # on a CPU each encoder is computed by a thread
        self.guards = {name: GUARD * abs(floor or 0.0) for name, floor in floors.items()}

    def __call__(
        self,
        features: Mapping[str, Tensor],
        tau: Tensor | None,
        weights: Mapping[str, float],
        step: int,
        ranks: Ranks = ALONE,
        rollout: int | None = None,
    ) -> Loss:
        """Scores of every encoder, and the true gradient of the loss for those with a weight. Nothing waits for a GPU.

        Args:
            features: {encoder: [n, d]}, this rank's rows. The distances see the rows of all ranks, and divide the work.
            tau: conditions [n, c] of the same rows, for the distances that are joint; None where none is.
            weights: {encoder: weight}; with weight 0 only the score is computed.
            step: seeds the distances that resample.
            ranks: the processes that share the rows.
            rollout: rows of all ranks together, of which this one has its `share`; None is those that it has.

        Raises:
            ValueError: when features are missing for an encoder.
        """
        if missing := sorted(set(self.distances) - set(features)):
            raise ValueError(f"There are no features of {missing}; the objective needs {sorted(self.distances)}.")
        n = rollout or len(next(iter(features.values())))
        all_tau = None if tau is None else ranks.gather(tau, n)

        def term(name: str) -> tuple[Tensor, Tensor, Tensor | None]:
            """L_e, its term of the loss and, if it has a weight, its gradient."""
            everyone, active = ranks.gather(features[name].detach(), n), weights[name] > 0
            with torch.set_grad_enabled(active):
                told = all_tau if self.distances[name].tau_width else None
                value = self.distances[name](everyone.requires_grad_(active), told, step=step, ranks=ranks)
            score = value.detach().double()
            scale = weights[name] / (score.abs().clamp(min=self.guards[name]) + TINY if self.self_normalise else 1.0)
            gradient = ranks.sum(torch.autograd.grad(value, everyone)[0]) if active else None
            return score, score * scale, None if gradient is None else gradient[ranks.share(n)] * (scale / ranks.size)

        order = self.order if ranks.size == 1 and all(rows.is_cpu for rows in features.values()) else InTurn()
        scores, weighted, found = zip(*order.map(term, self.distances), strict=True)
        gradients = {name: one for name, one in zip(self.distances, found, strict=True) if one is not None}
        return Loss(torch.stack([torch.stack(weighted).sum(), *scores]), tuple(self.distances), gradients)
