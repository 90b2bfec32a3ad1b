"""What each step asks of the generator, drawn while the step before it computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irdm.conditions import Conditions, draw
from irdm.ops.sampling import normal_rows, sent


@dataclass(frozen=True)
class Rollout:
    """A rank's share of a step's n rows: noise [k, *noise_shape], inputs {name: [k, ...]}, and tau [k, c] or None."""

    noise: Tensor
    inputs: dict[str, Tensor]
    tau: Tensor | None
    device: str

    def images(self, generator: nn.Module, rows: slice) -> Tensor:
        """What the generator draws for some of them: [rows, c, h, w]."""
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        return generator(sent(self.noise[rows], self.device), **inputs)


class Rollouts:
    """The rollout of any step, decided by (seed, step) alone; the next one is drawn in a thread meanwhile.

    Main memory holds the noise of two steps. On a GPU's host it is pinned, so that sending it waits for nothing.
    """

    def __init__(
        self,
        conditions: Conditions,
        noise_shape: tuple[int, ...],
        rollout: int,
        share: slice,
        *,
        seed: int,
        steps: int,
        joint: bool,
        device: str,
    ) -> None:
        """`share`: this rank's rows of the `rollout`. `joint`: whether tau is wanted. Beyond `steps` none is drawn."""
        self._conditions, self._shape, self._rollout, self._share = conditions, noise_shape, rollout, share
        self._seed, self._steps, self._joint, self._device = seed, steps, joint, device
        self._thread = ThreadPoolExecutor(1, "rollouts")
        self._ahead: dict[int, Future[Rollout]] = {}

    def __call__(self, step: int) -> Rollout:
        """That of a step, conditions on the device and noise on the host."""
        drawn = self._ahead.pop(step, None) or self._thread.submit(self._draw, step)
        if step + 1 < self._steps:
            self._ahead = {step + 1: self._thread.submit(self._draw, step + 1)}
        found = drawn.result()
        inputs = {name: sent(rows, self._device) for name, rows in found.inputs.items()}
        return Rollout(found.noise, inputs, None if found.tau is None else sent(found.tau, self._device), self._device)

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _draw(self, step: int) -> Rollout:
        asked = self._conditions[draw(self._conditions, self._rollout, "train", self._seed, step)[self._share]]
        noise = normal_rows(self._share, self._shape, "train", self._seed, step)
        if torch.device(self._device).type == "cuda":
            noise = noise.pin_memory()
        tau = asked.tau if self._joint else None
        return Rollout(noise, asked.inputs(), None if tau is None else tau[0 : len(asked)], self._device)
