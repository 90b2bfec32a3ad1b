"""From nothing to a network of many steps, by flow matching.

A picture x and noise e are paired (`irdm.world.coupling`); at a time t the network sees z = (1 - t) x + t e and tells
the picture, of which the velocity e - x is made (Lipman et al., 2023, arXiv 2210.02747), so that x = z - t v, klein's
own rule. The loss is that of the velocity, but no larger than at SMALLEST for the same error of the picture.

Letters: n scenes; l text tokens of d numbers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional as F

from irdm.teacher.config import FlowConfig
from irdm.teacher.training import SMALLEST, Training
from irdm.world.coupling import paired


class Flow(Training):
    """A network that tells, at every time, the mean of the pictures that may be."""

    name = "flow"
    config: FlowConfig

    def loss(self, texts: list[str], context: Float32[Tensor, "n l d"], draw: torch.Generator) -> Float32[Tensor, ""]:
        """Mean square of the velocity's error, over times at random."""
        config = self.config
        pictures, noise = paired(texts, draw)
        x = (F.pixel_unshuffle(pictures * 2 - 1, 2) - self.mean) / self.std
        e = F.pixel_unshuffle(noise, 2)
        t = torch.sigmoid(config.time_mean + config.time_std * torch.randn(len(x), generator=draw))
        t = torch.where(torch.rand(len(x), generator=draw) < config.noise_share, 1.0, t)
        at = t[:, None, None, None]
        told = self.velocity((1 - at) * x + at * e, t, context)
        return ((told - (e - x)) * at / at.clamp(min=SMALLEST)).square().mean()
