"""A convolutional network that draws small and medium images, up to 128 pixels a side, in one evaluation.

Letters: n images; z noise numbers, s of them global; m numbers of a style; c channels, h height, w width.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from irdm.conditions import Spec, class_count
from irdm.config import Config
from irdm.generators.base import Generator

LARGEST = 128  # pixels a side


class ConvConfig(Config):
    """A perceptron draws a coarse map from noise and a class; each doubling of its sides is refined by convolutions."""

    kind: Literal["conv"] = "conv"
    """Name of this kind of generator."""
    noise_dim: int = Field(default=64, ge=1, le=2**20)
    """Gaussian numbers that decide an image as a whole; its texture has one more for each pixel of each resolution."""
    style: int = Field(default=384, ge=1, le=2**20)
    """Units of the perceptron, whose output modulates every block."""
    style_depth: int = Field(default=3, ge=1, le=2**12)
    """Its hidden layers."""
    coarsest: int = Field(default=8, ge=2, le=2**10)
    """Sides are halved while the shorter is above this: 28 pixels start at 7, 32 and 64 at 8."""
    coarse: int = Field(default=64, ge=1, le=2**14)
    """Channels of the coarsest of several maps, which is linear: more than are read off it only help it learn."""
    width: int = Field(default=16, ge=1, le=2**14)
    """Channels at full resolution, doubled at each halving of the sides up to `most`."""
    most: int = Field(default=32, ge=1, le=2**14)
    """Channels at most, at any resolution but the coarsest."""
    depth: int = Field(default=2, ge=1, le=2**8)
    """Convolutions at each resolution but the coarsest."""
    style_rate: float = Field(default=1.0, ge=1e-3, le=1e3)
    """Learning rate of the perceptron, and of what it is read by, as a share of the convolutions'. Each of its weights
    changes every pixel: at their rate drawings come to saturate, at 0.25 of it they do not."""

    def build(self, image_shape: tuple[int, int, int], spec: Spec) -> ConvGenerator:
        """A freshly initialised network; the caller seeds torch. Raises ValueError for images that are too large."""
        if max(image_shape[1:]) > LARGEST:
            raise ValueError(
                f"The generator 'conv' draws images of at most {LARGEST} pixels a side, and these have "
                f"{image_shape[2]} x {image_shape[1]}. Make them smaller: --data.size 32, or 64."
            )
        return ConvGenerator(self, image_shape, spec)


class ConvGenerator(Generator):
    """`forward(noise [n, z], labels [n] or None) -> images [n, c, h, w]` in (0, 1).

    The picture is the sum of one read off the coarse map, so that the layout is learned without the convolutions, and
    one that these refine. Each convolution is given a map of fresh noise (Karras et al. 2019, arXiv 1812.04948): the
    fine texture of cloth or grass is random, and smooth layers cannot make it of a few numbers. Nothing is normalised,
    and sides are doubled bilinearly: neither leaves a checkerboard.
    """

    def __init__(self, config: ConvConfig, image_shape: tuple[int, int, int], spec: Spec):
        super().__init__()
        channels, height, width = image_shape
        self.sides = sides(height, width, config.coarsest)
        self.map_sizes = [size for size in self.sides[1:] for _ in range(config.depth)]
        self.parts = [config.noise_dim, *map(math.prod, self.map_sizes)]
        self.noise_shape = (sum(self.parts),)
        widths = [min(config.most, config.width * 2**i) for i in reversed(range(len(self.sides)))]
        if len(widths) > 1:
            widths[0] = config.coarse
        rate = config.style_rate
        self.embed_noise = Linear(config.noise_dim, config.style, rate)
        classes = class_count(spec, config.kind)
        self.embed_label = Embedding(classes, config.style, rate) if classes else None
        self.hidden = nn.ModuleList(Linear(config.style, config.style, rate) for _ in range(config.style_depth - 1))
        self.to_map = Linear(config.style, widths[0] * math.prod(self.sides[0]), rate)
        self.narrow = nn.ModuleList(nn.Conv2d(wide, thin, 1) for wide, thin in pairwise(widths))
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(wide, config.style, rate) for _ in range(config.depth)) for wide in widths[1:]
        )
        self.to_picture = nn.Conv2d(widths[0], channels, 1)
        self.to_detail = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # a fifth faster on a CPU

    def forward(
        self, noise: Float[Tensor, "n z"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """One network evaluation; all randomness is in `noise`."""
        whole, *rest = noise.split(self.parts, dim=1)
        maps = iter(rest)
        style = self.embed_noise(whole)
        if self.embed_label is not None:
            style = style + self.embed_label(labels)
        style = F.silu(style)
        for layer in self.hidden:
            style = style + F.silu(layer(style))
        x = self.to_map(style).unflatten(1, (-1, *self.sides[0])).contiguous(memory_format=torch.channels_last)
        picture = enlarged(self.to_picture(x), self.sides[-1])
        for narrow, blocks, size in zip(self.narrow, self.blocks, self.sides[1:], strict=True):
            x = enlarged(narrow(x), size)  # narrowed first: a quarter of the work
            for block in blocks:  # type: ignore[attr-defined] # a list of them
                x = block(x, style, next(maps).unflatten(1, (1, *size)))
        return torch.sigmoid(picture + self.to_detail(F.silu(x))).contiguous()

    @torch.no_grad()
    def condensed(self) -> ConvGenerator:
        """With a coarsest map of no more channels than are read off it: it is linear, and so is what reads it."""
        readers = [self.to_picture, *self.narrow[:1]]
        read = torch.cat([reader.weight for reader in readers])[:, :, 0, 0]  # type: ignore[misc] # [channels read, wide]
        count, wide = read.shape
        if count >= wide or len(readers) == 1:
            return self
        found, cells = copy.deepcopy(self), math.prod(self.sides[0])
        offsets = torch.cat([reader.bias for reader in readers])[:, None] / self.to_map.rate  # type: ignore[misc]
        found.to_map = Linear(self.to_map.in_features, count * cells, self.to_map.rate)
        found.to_map.weight.copy_((read @ self.to_map.weight.view(wide, -1)).view(count * cells, -1))
        found.to_map.bias.copy_((read @ self.to_map.bias.view(wide, cells) + offsets).flatten())
        rows = torch.eye(count)[:, :, None, None].split([len(reader.weight) for reader in readers])
        for reader, picked in zip([found.to_picture, *found.narrow[:1]], rows, strict=True):
            reader.weight, reader.bias = nn.Parameter(picked), nn.Parameter(torch.zeros(len(picked)))
        return found.to(read.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


class Block(nn.Module):
    """x + conv(silu(x (1 + scale) + shift + strength noise)): the three are linear in the style, by channel."""

    def __init__(self, width: int, style: int, rate: float):
        super().__init__()
        self.modulate = Linear(style, 3 * width, rate)
        spread = torch.tensor([0.5, 0.5, 0.1]).repeat_interleave(width)[:, None] / math.sqrt(style)
        self.modulate.weight.data.normal_().mul_(spread / rate)
        nn.init.zeros_(self.modulate.bias)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "n k h w"], style: Float[Tensor, "n m"], noise: Float[Tensor, "n 1 h w"]
    ) -> Float[Tensor, "n k h w"]:
        """The refined map."""
        scale, shift, strength = self.modulate(style)[:, :, None, None].chunk(3, dim=1)
        return x + self.conv(F.silu(torch.addcmul(torch.addcmul(shift, x, 1 + scale), strength, noise)))


class Linear(nn.Linear):
    """A linear layer that learns at `rate` times the learning rate: its numbers are kept divided by the rate, and Adam
    moves them as far whatever their scale (Karras et al. 2018, arXiv 1710.10196, section 4.1).
    """

    def __init__(self, wide: int, thin: int, rate: float):
        super().__init__(wide, thin)
        self.rate = rate
        with torch.no_grad():
            for numbers in self.parameters():
                numbers.div_(rate)

    def forward(self, input: Float[Tensor, "n wide"]) -> Float[Tensor, "n thin"]:
        """As of a layer whose numbers are `rate` times these."""
        return F.linear(input, self.rate * self.weight, self.rate * self.bias)


class Embedding(nn.Embedding):
    """A vector for each class, that learns at `rate` times the learning rate, as `Linear`."""

    def __init__(self, classes: int, width: int, rate: float):
        super().__init__(classes, width)
        self.rate = rate
        with torch.no_grad():
            self.weight.div_(rate)

    def forward(self, input: Int64[Tensor, " n"]) -> Float[Tensor, "n width"]:
        """The rows of labels, times the rate."""
        return self.rate * super().forward(input)


def enlarged(x: Float[Tensor, "n k h w"], size: tuple[int, int]) -> Tensor:
    """Bilinearly, to a height and a width."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def sides(height: int, width: int, coarsest: int) -> list[tuple[int, int]]:
    """(height, width), coarsest first: halved, rounding up, while the shorter is above `coarsest`."""
    found = [(height, width)]
    while min(found[-1]) > coarsest:
        found.append(((found[-1][0] + 1) // 2, (found[-1][1] + 1) // 2))
    return found[::-1]
