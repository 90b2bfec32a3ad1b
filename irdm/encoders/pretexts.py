"""The parts of a local battery: small trunks, and the tasks ("pretexts") that teach them something about images.

Trunks pool by averaging and never stride: strided convolutions are the first thing a generator learns to game.

Letters: n rows, c channels, h height, w width, d feature numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

Images = Float[Tensor, "n c h w"]
Labels = Int64[Tensor, " n"]
Shape = tuple[int, int, int]


def shape_of(images: Images) -> Shape:
    """(channels, height, width)."""
    _, c, h, w = images.shape
    return c, h, w


class Standardise(nn.Module):
    """Images minus the training images' mean, over their standard deviation, by channel."""

    mean: Tensor
    scale: Tensor

    def __init__(self, images: Images):
        super().__init__()
        self.register_buffer("mean", images.mean((0, 2, 3), keepdim=True))
        self.register_buffer("scale", images.std((0, 2, 3), keepdim=True).clamp_min(1e-3))

    def forward(self, images: Images) -> Images:
        return (images - self.mean) / self.scale


def pool_to(side: int, shape: Shape) -> nn.Module:
    """Average pooling that brings images of `shape` to at most `side` pixels a side."""
    size = (min(side, shape[1]), min(side, shape[2]))
    return nn.Identity() if size == shape[1:] else nn.AdaptiveAvgPool2d(size)


def conv_trunk(shape: Shape, width: int, dim: int) -> nn.Sequential:
    """3x3 convolutions, each followed by 2x2 average pooling, down to 2x2 cells; then one linear map to `dim`."""
    layers: list[nn.Module] = []
    channels, side, wide = shape[0], shape[1:], width
    while max(side) > 2:
        layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)]
        channels, side, wide = wide, tuple((pixels + 1) // 2 for pixels in side), min(2 * wide, 4 * width)
    trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * math.prod(side), dim))
    return trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # a quarter faster on a CPU


def mlp_trunk(shape: Shape, width: int, dim: int) -> nn.Sequential:
    """Pixels, averaged to at most 16x16, through two hidden layers to `dim`."""
    inputs = shape[0] * math.prod(min(16, pixels) for pixels in shape[1:])
    hidden = [nn.Linear(inputs, 8 * width), nn.GELU(), nn.Linear(8 * width, 8 * width), nn.GELU()]
    return nn.Sequential(pool_to(16, shape), nn.Flatten(), *hidden, nn.Linear(8 * width, dim))


class PatchFeatures(nn.Module):
    """Sizes of the responses to patches cut at random from real images, averaged over a 2x2 grid (Coates and Ng, 2011).

    Nothing is learned: each filter is a training patch less its mean, of unit length.
    """

    filters: Tensor

    def __init__(self, images: Images, count: int, size: int = 3):
        super().__init__()
        rows = torch.randint(len(images), (16 * count,))
        patches = F.unfold(images[rows], size)  # [rows, c * size * size, places]
        places = torch.randint(patches.shape[2], (len(rows),))
        patches = patches[torch.arange(len(rows)), :, places]
        patches = patches - patches.mean(1, keepdim=True)
        # Flat patches have no direction; the most contrasted half has one.
        patches = patches[patches.norm(dim=1).argsort(descending=True)[: 8 * count]]
        patches = F.normalize(patches[torch.randperm(len(patches))[:count]], dim=1)
        filters = patches.unflatten(1, (images.shape[1], size, size))
        self.register_buffer("filters", filters.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Images) -> Float[Tensor, "n d"]:
        return 4 * F.adaptive_avg_pool2d(F.conv2d(images, self.filters).abs(), 2).flatten(1)


class Pixels(nn.Module):
    """Pixels, averaged to at most 8x8, flattened."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.pool = pool_to(8, shape)

    def forward(self, images: Images) -> Float[Tensor, "n d"]:
        return self.pool(images).flatten(1)


class WhitePCA(nn.Module):
    """The leading principal components of pixels averaged to at most 16x16, each scaled to unit variance."""

    mean: Tensor
    axes: Tensor

    def __init__(self, images: Images, dim: int):
        super().__init__()
        self.pool = pool_to(16, shape_of(images))
        rows = self.pool(images).flatten(1).double()
        values, vectors = torch.linalg.eigh(rows.T.cov())
        dim = min(dim, rows.shape[1])
        axes = vectors[:, -dim:] / values[-dim:].clamp_min(1e-4).sqrt()
        self.register_buffer("mean", rows.mean(0).float())
        self.register_buffer("axes", axes.float().contiguous())

    def forward(self, images: Images) -> Float[Tensor, "n d"]:
        return (self.pool(images).flatten(1) - self.mean) @ self.axes


def augment(images: Images, *, turn: float = 0.2, zoom: float = 0.15, shift: float = 0.12) -> Images:
    """Each image turned (radians), zoomed and shifted (share of the side) a little, at random."""
    n = len(images)
    angle, scale = (2 * torch.rand(n) - 1) * turn, 1 + (2 * torch.rand(n) - 1) * zoom
    cos, sin, move = scale * angle.cos(), scale * angle.sin(), (2 * torch.rand(n, 2) - 1) * 2 * shift
    matrix = torch.stack([cos, -sin, move[:, 0], sin, cos, move[:, 1]], dim=1).unflatten(1, (2, 3))
    return F.grid_sample(images, F.affine_grid(matrix, list(images.shape), align_corners=False), align_corners=False)


# A pretext is a loss of (trunk, head, images, labels). The head is thrown away afterwards.


def classification(trunk: nn.Module, head: nn.Module, images: Images, labels: Labels) -> Tensor:
    """Cross-entropy of the class, on augmented images."""
    return F.cross_entropy(head(trunk(augment(images))), labels, label_smoothing=0.1)


def contrast(trunk: nn.Module, head: nn.Module, images: Images, labels: Labels) -> Tensor:
    """Two views of an image find each other among all views of the batch (SimCLR, Chen et al., 2020)."""
    n = len(images)
    views = augment(torch.cat([images, images]), turn=0.35, zoom=0.25, shift=0.15)
    views = views * (0.7 + 0.3 * torch.rand(2 * n, 1, 1, 1)) + 0.05 * torch.randn_like(views)
    rows = F.normalize(head(trunk(views)), dim=1)
    logits = (rows @ rows.T / 0.2).fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, torch.arange(2 * n).roll(n))


def inpainting(trunk: nn.Module, head: nn.Module, images: Images, labels: Labels) -> Tensor:
    """Half of the quarter-side blocks are blanked; the code predicts their pixels (He et al., 2022)."""
    n, _, h, w = images.shape
    keep = (torch.rand(n, 1, 4, 4) < 0.5).float()
    keep = F.interpolate(keep, size=(h, w))
    error = (head(trunk(images * keep)).view_as(images) - images).square() * (1 - keep)
    return error.mean()


def denoising(trunk: nn.Module, head: nn.Module, images: Images, labels: Labels) -> Tensor:
    """The code of a noisy image gives back the clean one (Vincent et al., 2008)."""
    noise = torch.rand(len(images), 1, 1, 1) * 0.5 * torch.randn_like(images)
    return (head(trunk(images + noise)).view_as(images) - images).square().mean()


def rotation(trunk: nn.Module, head: nn.Module, images: Images, labels: Labels) -> Tensor:
    """Which quarter turn was it? (Gidaris et al., 2018). Images that are not square are turned by halves."""
    quarters = range(4) if images.shape[2] == images.shape[3] else range(0, 4, 2)
    images = images[: max(1, len(images) // 2)]  # every one is seen four times
    turned = torch.cat([torch.rot90(augment(images, turn=0.1), k, (2, 3)) for k in quarters])
    answers = torch.arange(len(quarters)).repeat_interleave(len(images))
    return F.cross_entropy(head(trunk(turned)), answers, label_smoothing=0.1)


Trunk = Callable[[Shape, int, int], nn.Sequential]
Loss = Callable[[nn.Module, nn.Module, Images, Labels], Tensor]


@dataclass(frozen=True)
class Pretext:
    """A trunk, the task that trains it, and how many numbers the task's head puts out."""

    trunk: Trunk
    loss: Loss
    outputs: Callable[[Shape, int], int]


PRETEXTS: dict[str, Pretext] = {
    "supervised": Pretext(conv_trunk, classification, lambda shape, classes: classes),
    "supervised_mlp": Pretext(mlp_trunk, classification, lambda shape, classes: classes),
    "contrastive": Pretext(conv_trunk, contrast, lambda shape, classes: 32),
    "masked": Pretext(mlp_trunk, inpainting, lambda shape, classes: math.prod(shape)),
    "denoising": Pretext(mlp_trunk, denoising, lambda shape, classes: math.prod(shape)),
    "rotation": Pretext(conv_trunk, rotation, lambda shape, classes: 4),
}
