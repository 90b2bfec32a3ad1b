"""The objective: one distance per encoder, each put on the scale of its own value, weighted and summed.

    loss = sum_e  weight_e * L_e / stop_grad(max(|L_e|, guard_e))

Dividing by the term's own value gives the gradient of log L_e, so encoders of very different scale pull alike. Near
L_e = 0 that gradient would blow up, so the divisor never falls below a share of the encoder's real floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from irdm.distances import Distance
from irdm.distributed import Ranks

GUARD = 0.1  # the divisor's least value, as a share of the floor
TINY = 1e-7


@dataclass(frozen=True)
class Loss:
    """`scores` {encoder: L_e}, the weighted sum `value`, and `gradients` {encoder: [n, d]} of this rank's own rows."""

    value: float
    scores: dict[str, float]
    gradients: dict[str, Tensor]


class Objective:
    """Distances by encoder, and their floors: the same distance for held-out real data, None where it is not known."""

    def __init__(
        self, distances: Mapping[str, Distance], floors: Mapping[str, float | None], *, self_normalise: bool = True
    ):
        if set(distances) != set(floors):
            raise ValueError(f"Distances are for {sorted(distances)} but floors for {sorted(floors)}.")
        self.distances, self.self_normalise = dict(distances), self_normalise
        self.guards = {name: GUARD * abs(floor or 0.0) for name, floor in floors.items()}

    def __call__(
        self,
        features: Mapping[str, Tensor],
        tau: Tensor | None,
        weights: Mapping[str, float],
        step: int,
        ranks: Ranks | None = None,
    ) -> Loss:
        """Scores of every encoder, and the true gradient of the loss for those with a weight.

        Args:
            features: {encoder: [n, d]}, this rank's rows. The distances see the rows of all ranks.
            tau: conditions [n, c] of the same rows, or None for marginal matching.
            weights: {encoder: weight}; with weight 0 only the score is computed.
            step: seeds the distances that resample.
            ranks: the processes that share the rows; None is one process alone.

        Raises:
            ValueError: when features are missing for an encoder.
        """
        if missing := sorted(set(self.distances) - set(features)):
            raise ValueError(f"There are no features of {missing}; the objective needs {sorted(self.distances)}.")
        gather = ranks.gather if ranks else lambda rows: (rows, slice(None))
        all_tau = None if tau is None else gather(tau)[0]
        loss, scores, gradients = 0.0, {}, {}
        for name, distance in self.distances.items():
            everyone, mine = gather(features[name].detach())
            active = weights[name] > 0
            with torch.set_grad_enabled(active):
                value = distance(everyone.requires_grad_(active), all_tau, step=step)
            scores[name] = value.item()
            scale = weights[name]
            if self.self_normalise:
                scale /= max(abs(scores[name]), self.guards[name]) + TINY
            loss += scale * scores[name]
            if active:
                gradients[name] = torch.autograd.grad(value, everyone)[0][mine] * scale
        return Loss(loss, scores, gradients)
