"""The paper's toy generator: a plain perceptron without an output range, for points and not for pictures."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from irdm.conditions import NoSpec, Spec, class_count
from irdm.config import Config
from irdm.generators.base import Generator


class ReLUMLPConfig(Config):
    """ReLU layers from noise to unbounded coordinates; it has no use for a condition."""

    kind: Literal["relu-mlp"] = "relu-mlp"
    """Name of this kind of generator."""
    noise_dim: int = Field(default=2, ge=1, le=2**20)
    """Gaussian numbers that one point is drawn from."""
    width: int = Field(default=256, ge=1, le=2**20)
    """Units of every hidden layer."""
    depth: int = Field(default=4, ge=1, le=2**12)
    """Hidden layers."""

    def build(self, image_shape: tuple[int, int, int], spec: Spec) -> ReLUMLP:
        """A freshly initialised network; the caller seeds torch. Raises ValueError for data with a condition."""
        if not isinstance(spec, NoSpec):
            raise ValueError(
                f"The relu-mlp generator takes no condition, but the data has {class_count(spec, self.kind)} classes: "
                "use --generator.kind mlp."
            )
        return ReLUMLP(self, image_shape)


class ReLUMLP(Generator):
    """`forward(noise [n, noise_dim]) -> points [n, c, h, w]`."""

    def __init__(self, config: ReLUMLPConfig, image_shape: tuple[int, int, int]):
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.noise_shape = (config.noise_dim,)
        widths = [config.noise_dim, *[config.width] * config.depth]
        hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], math.prod(image_shape)))

    def forward(self, noise: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        """One network evaluation."""
        return self.layers(noise).unflatten(1, self.image_shape)
