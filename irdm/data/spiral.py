"""The spiral of the paper's toy study: noisy points on a plane curve, laid into a space of many dimensions.

Letters: n points, d dimensions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from irdm.conditions import Unconditional
from irdm.config import Config
from irdm.data.base import Dataset, TensorSplit
from irdm.ops.sampling import generator_for

INNER, OUTER, TURNS = 0.5, 2.5, 2  # arXiv 2607.02375, Fig. 3


class SpiralConfig(Config):
    """Points on a 2-turn spiral of radius 0.5 to 2.5 with Gaussian noise in its plane, isometrically in `dim` numbers.

    The one dataset whose "images" [n, dim, 1, 1] are coordinates and not in [0, 1]: an `identity` battery compares
    them, and nothing draws them as pixels.
    """

    kind: Literal["spiral"] = "spiral"
    """Name of this kind of dataset."""
    points: int = Field(default=2000, ge=16)
    """Points of each split."""
    dim: int = Field(default=64, ge=2)
    """Numbers of a point."""
    noise: float = Field(default=0.05, ge=0)
    """Standard deviation of the noise along each axis of the plane."""
    seed: int = Field(default=0, ge=0)
    """Seed of the points and of the plane."""

    def build(self) -> Dataset:
        """Train and val are independent draws without a condition."""
        basis = plane(self)
        splits = {}
        for name in ("train", "val"):
            draw = generator_for("spiral", name, self.seed)
            points = spiral(torch.rand(self.points, generator=draw))
            points = points + self.noise * torch.randn(points.shape, generator=draw)
            images = (points @ basis.T)[:, :, None, None]
            splits[name] = TensorSplit(images, Unconditional(self.points), f"spiral ({name})")
        return Dataset("spiral", **splits)


def spiral(position: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    """Points of the curve, `position` from 0 (its inner end) to 1: radius and angle both rise linearly."""
    radius = INNER + (OUTER - INNER) * position
    angle = 2 * math.pi * TURNS * position
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def plane(config: SpiralConfig) -> Float[Tensor, "d 2"]:
    """Orthonormal columns that lay the plane of the curve into `dim` dimensions."""
    return torch.linalg.qr(torch.randn(config.dim, 2, generator=generator_for("spiral plane", config.seed))).Q
