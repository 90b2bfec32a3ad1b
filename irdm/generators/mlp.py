"""A plain multilayer perceptron that draws small images in one evaluation."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from irdm.conditions import Spec, class_count
from irdm.config import Config
from irdm.generators.base import Generator


class MLPConfig(Config):
    """A residual perceptron from noise and a class to pixels: for images up to about 32x32."""

    kind: Literal["mlp"] = "mlp"
    """Name of this kind of generator."""
    width: int = Field(default=512, ge=1, le=2**20)
    """Units of every hidden layer."""
    depth: int = Field(default=4, ge=1, le=2**12)
    """Hidden layers."""
    noise_dim: int = Field(default=64, ge=1, le=2**20)
    """Gaussian numbers that one image is drawn from."""

    def build(self, image_shape: tuple[int, int, int], spec: Spec) -> MLPGenerator:
        """A freshly initialised network; the caller seeds torch."""
        return MLPGenerator(self, image_shape, spec)


class MLPGenerator(Generator):
    """`forward(noise [n, noise_dim], labels [n] or None) -> images [n, c, h, w]` in (0, 1)."""

    def __init__(self, config: MLPConfig, image_shape: tuple[int, int, int], spec: Spec):
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.noise_shape = (config.noise_dim,)
        self.embed_noise = nn.Linear(config.noise_dim, config.width)
        classes = class_count(spec, config.kind)
        self.embed_label = nn.Embedding(classes, config.width) if classes else None
        self.hidden = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth - 1))
        self.to_pixels = nn.Linear(config.width, math.prod(image_shape))

    def forward(
        self, noise: Float[Tensor, "n z"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """One network evaluation; all randomness is in `noise`."""
        x = self.embed_noise(noise)
        if self.embed_label is not None:
            x = x + self.embed_label(labels)
        x = nn.functional.silu(x)
        for layer in self.hidden:
            x = x + nn.functional.silu(layer(x))
        return torch.sigmoid(self.to_pixels(x)).unflatten(1, self.image_shape)
