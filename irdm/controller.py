"""The weights that keep a battery of encoders in balance: a gated, proportional Lagrangian controller.

Any single representation can be gamed, so an encoder that already looks like real data (its score at or below its
floor) gets weight 0, and those that do not share a fixed budget, the worst of them the most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from irdm.config import Config


class ControllerConfig(Config):
    """How the encoders are weighted."""

    kind: Literal["lagrangian", "uniform"] = "lagrangian"
    """`lagrangian`: by how far each encoder is above its real floor. `uniform`: always 1."""
    smoothing: float = Field(default=0.5, ge=0, lt=1)
    """Share of the old value in the moving average of a score."""
    temperature: float = Field(default=2.0, gt=0)
    """Softness of the weights: an encoder with the mean excess gets exp(1/temperature)."""
    excess_clip: float = Field(default=5.0, gt=0)
    """Bound on score minus floor."""
    budget: float | None = Field(default=None, gt=0)
    """Sum of the weights while any encoder is above its floor; unset means the number of encoders."""


class Controller:
    """Weights by encoder, updated after each step from that step's scores.

    With the smoothed score s_e and x_e = clip(s_e - floor_e, -clip, clip): weight 0 where x_e <= 0, otherwise
    budget * softmax over violators of x_e / (temperature * mean violators' x). All weights are 1 before the first
    update and 0 when no encoder violates.
    """

    def __init__(self, config: ControllerConfig, floors: Mapping[str, float | None]):
        gated = config.kind == "lagrangian"
        if bad := {e: floor for e, floor in floors.items() if (gated if floor is None else not math.isfinite(floor))}:
            raise ValueError(
                f"Floors must be finite numbers, found {bad}. None: not known, which only kind uniform does "
                "without. Anything else: the real features are broken."
            )
        self.config = config
        self.floors = {name: floor or 0.0 for name, floor in floors.items()}
        self.scores: dict[str, float] = {}
        self.weights = dict.fromkeys(floors, 1.0)

    def update(self, scores: Mapping[str, float]) -> dict[str, float]:
        """The weights of the next step. A score that is not finite changes nothing at all.

        Raises ValueError when the scores are of other encoders than the floors.
        """
        if set(scores) != set(self.floors):
            raise ValueError(f"Got scores of {sorted(scores)}, expected those of {sorted(self.floors)}.")
        if self.config.kind == "uniform" or not all(math.isfinite(score) for score in scores.values()):
            return self.weights
        keep, clip = self.config.smoothing, self.config.excess_clip
        self.scores = {e: keep * self.scores.get(e, score) + (1 - keep) * score for e, score in scores.items()}
        excess = {e: max(-clip, min(clip, score - self.floors[e])) for e, score in self.scores.items()}
        violators = {e: x for e, x in excess.items() if x > 0}
        self.weights = dict.fromkeys(self.floors, 0.0)
        if violators:
            scale = self.config.temperature * sum(violators.values()) / len(violators)
            top = max(violators.values())
            unnormalised = {e: math.exp((x - top) / scale) for e, x in violators.items()}
            budget = self.config.budget or float(len(self.floors))
            total = sum(unnormalised.values())
            self.weights |= {e: budget * value / total for e, value in unnormalised.items()}
        return self.weights

    def state_dict(self) -> dict[str, dict[str, float]]:
        """What a resumed run needs: smoothed scores and current weights."""
        return {"scores": dict(self.scores), "weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Continue from `state_dict()`. Raises ValueError when it is of other encoders."""
        if set(state["weights"]) != set(self.floors):
            raise ValueError(f"The state has {sorted(state['weights'])}, expected {sorted(self.floors)}.")
        self.scores, self.weights = dict(state["scores"]), dict(state["weights"])
