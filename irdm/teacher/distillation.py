"""From many steps to four: the network learns to tell, from any state of its own four steps, what they come to.

Noise leads to one picture by four steps of the network as it was, so what is to be told at time 1 is one picture, not a
mean of pictures. Sources: rectified flow (Liu et al., 2023, arXiv 2209.03003); along the sampler's own states,
consistency models (Song et al., 2023, arXiv 2303.01469). FLUX.2 [klein] is distilled to four steps, too.

Letters: n scenes; l text tokens of d numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from irdm.generators.klein_teacher import Teacher
from irdm.teacher.config import DistillationConfig
from irdm.teacher.training import SMALLEST, Training
from irdm.world import SIDE
from irdm.world.language import LONGEST


class Distillation(Training):
    """A network that tells at time 1, and at the later times of its sampler, where four steps of it would end."""

    name = "distillation"
    config: DistillationConfig

    def __init__(self, config: DistillationConfig, seed: int, start: Path):
        super().__init__(config, seed, start)
        sampler = Teacher(start, (3, SIDE, SIDE), length=LONGEST, precision="float32")
        sampler(list(self.contexts)[:1], [0])  # the pipeline sets the times of an image's size when it draws one
        self.times = sampler.pipeline.scheduler.sigmas.float()
        self.base = sampler.pipeline.transformer.requires_grad_(False)

    def loss(self, texts: list[str], context: Float32[Tensor, "n l d"], draw: torch.Generator) -> Float32[Tensor, ""]:
        """Mean square of the picture's error over time: all scenes at time 1, some again at a later time each."""
        noise = torch.randn(len(texts), self.mean.shape[0], self.rows, self.columns, generator=draw)
        *states, x = self.states(noise, context)
        again = torch.arange(round(self.config.later_share * len(texts)))
        later = torch.randint(1, len(states), again.shape, generator=draw)
        z = torch.cat([noise, torch.stack(states)[later, again]])
        t = torch.cat([torch.ones(len(texts)), self.times[later]])
        at = t[:, None, None, None]
        told = z - at * self.velocity(z, t, torch.cat([context, context[again]]))
        return ((told - torch.cat([x, x[again]])) / at.clamp(min=SMALLEST)).square().mean()

    @torch.no_grad()
    def states(
        self, z: Float32[Tensor, "n 12 8 8"], context: Float32[Tensor, "n l d"]
    ) -> list[Float32[Tensor, "n 12 8 8"]]:
        """Noise, what the network as it was makes of it after each step, and last the picture."""
        found = [z]
        for now, then in zip(self.times[:-1], self.times[1:], strict=True):
            velocity = self.velocity(found[-1], now.expand(len(z)), context, self.base)
            found.append(found[-1] + (then - now) * velocity)
        return found
