"""Learned views of images: small networks, and the lessons that teach each of them something about real images.

A view maps images [n, c, h, w] in [0, 1], at least 4 x 4 pixels, to n rows, differentiably; it is whitened afterwards.
Views pool by averaging and never stride: strided convolutions are the first thing a generator learns to game. A lesson
holds the view and whatever is thrown away later, and returns the loss for some images and their labels; its random
numbers come from the generator that it is given, so that several may be taught at once, or from torch's own.

Letters: n rows, c channels, h height, w width, d feature numbers, t numbers of tau.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from irdm.encoders.fixed import Images, Rows, shrink, smooth
from irdm.ops.convolution import Conv2d

Labels = Int64[Tensor, " n"]
Shape = tuple[int, int, int]
Random = torch.Generator | None

BLOCKS = 4  # across and down, of what `Mixture` tells
CODE = 64  # numbers that `Damage` and `Mixture` put out
CROP = 64  # pixels: larger images are averaged to this for their content, and cut to it to learn damage
FLAT = 1e-3  # variance, of eight grey levels: flatter images and neighbourhoods are not stretched to unit contrast
KINDS = 5  # of damage


class Content(nn.Module):
    """What is shown: convolutions on images without their brightness and contrast. Colour stays.

    Sees dropped classes, colour, shifts, wrong shapes. Blind to noise and to contrast.
    """

    def __init__(self, shape: Shape, outputs: int, width: int):
        super().__init__()
        self.trunk = _trunk(shape, (width, 4 * width), 2, 64, outputs)

    def forward(self, images: Images) -> Rows:
        x = shrink(images, CROP)
        x = x - x.mean((1, 2, 3), keepdim=True)
        return self.trunk(x * (x.square().mean((1, 2, 3), keepdim=True) + FLAT).rsqrt())


class Caption(nn.Module):
    """What a caption would say: tau, as convolutions tell it from an image, in place of CLIP's which learn from texts.

    Sees what texts name: for shapes in places, how many there are of which colour. Not whitened: what an image tells
    of tau spreads widely, and what it does not tell hardly at all, which whitening would make as loud.
    """

    def __init__(self, shape: Shape, outputs: int, width: int):
        super().__init__()
        self.trunk = _trunk(shape, (2 * width, 4 * width), 4, 128, 64)
        self.head = nn.Linear(64, outputs)

    def forward(self, images: Images) -> Rows:
        return self.head(self.trunk(shrink(images, CROP)))


class Mixture(nn.Module):
    """Is this one picture, or parts of two? Convolutions, as a network tells what of another image was put in.

    Sees what generators of few steps make where they cannot decide: ghosts, halves of two things, colours between two.
    Blind to what is shown, and to damage that all of an image has.
    """

    def __init__(self, shape: Shape, width: int):
        super().__init__()
        self.trunk = _trunk(shape, (2 * width, 4 * width), BLOCKS, 128, CODE)

    def forward(self, images: Images) -> Rows:
        return self.trunk(shrink(images, CROP))


def _trunk(shape: Shape, widths: tuple[int, int], cells: int, hidden: int, outputs: int) -> nn.Sequential:
    """Convolutions, the first and the most channels in `widths`, halved down to cells x cells; then a perceptron."""
    layers: list[nn.Module] = []
    channels, side, wide = shape[0], min(CROP, max(shape[1:])), widths[0]
    while side > cells:
        layers += [Conv2d(channels, wide, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)]
        channels, side, wide = wide, (side + 1) // 2, min(2 * wide, widths[1])
    layers += [nn.AdaptiveAvgPool2d(cells), nn.Flatten(), nn.Linear(cells**2 * channels, hidden), nn.GELU()]
    trunk = nn.Sequential(*layers, nn.Linear(hidden, outputs))
    return trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # faster on a CPU


class Layout(nn.Module):
    """What is where: a perceptron on pixels averaged to at most 16 x 16.

    Sees dropped classes, shifts, contrast, colour casts. Blind to texture.
    """

    def __init__(self, shape: Shape, outputs: int, width: int):
        super().__init__()
        self.side, hidden = 16, 8 * width
        inputs = shape[0] * math.prod(min(self.side, pixels) for pixels in shape[1:])
        layers = [nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        self.trunk = nn.Sequential(*layers, nn.Linear(hidden, outputs))

    def forward(self, images: Images) -> Rows:
        return self.trunk(shrink(images, self.side).flatten(1))


class Damage(nn.Module):
    """What went wrong: sizes of responses to texture, at full and at half resolution, and what they tell together.

    Texture is the image less its local mean, at unit local contrast. Sees noise, blur, JPEG, patterns, learned where
    `Correlation` has them written down. Blind to brightness, to contrast and to what is shown.
    """

    def __init__(self, shape: Shape, width: int):
        super().__init__()
        self.window, self.least = 7, 0.1
        self.fine = nn.Conv2d(shape[0], width, 3, padding=1)
        self.coarse = nn.Conv2d(width, width, 2)
        self.code = nn.Sequential(nn.Linear(4 * width, 64), nn.GELU(), nn.Linear(64, CODE))

    def forward(self, images: Images) -> Rows:
        x = images - smooth(images, self.window)
        x = x * (smooth(x.square().mean(1, keepdim=True), self.window) + FLAT).rsqrt()
        x = self.coarse(F.avg_pool2d(self.fine(x).abs(), 2)).abs()
        return self.code((self.least + F.adaptive_avg_pool2d(x, 2).flatten(1)).log())


class Classify(nn.Module):
    """Cross-entropy of the class of augmented images: the view's numbers are the logits."""

    def __init__(self, view: nn.Module):
        super().__init__()
        self.view = view

    def forward(self, images: Images, labels: Labels, random: Random = None) -> Float[Tensor, ""]:
        return F.cross_entropy(self.view(augment(images, random=random)), labels, label_smoothing=0.1)


class Describe(nn.Module):
    """The squared error of tau, as a share of its variance."""

    def __init__(self, view: nn.Module, tau: Float[Tensor, "m t"]):
        super().__init__()
        self.view, self.spread = view, tau.var(0).sum().clamp(min=1e-12)

    def forward(self, images: Images, tau: Float[Tensor, "n t"], random: Random = None) -> Float[Tensor, ""]:
        return (self.view(images) - tau).square().sum(1).mean() / self.spread


class Contrast(nn.Module):
    """Two views of an image find each other among all of a batch (SimCLR, Chen et al., 2020). Needs no labels."""

    def __init__(self, view: nn.Module):
        super().__init__()
        self.view = view

    def forward(self, images: Images, labels: Labels, random: Random = None) -> Float[Tensor, ""]:
        n = len(images)
        rows = self.view(augment(torch.cat([images, images]), 0.35, 0.25, 0.15, random))
        rows = F.normalize(rows, dim=1)
        return F.cross_entropy((rows @ rows.T / 0.2).fill_diagonal_(-math.inf), torch.arange(2 * n).roll(n))


class Unmix(nn.Module):
    """How far is each block of a mixed image from the nearer of the two? A share of its variance. Needs no labels."""

    def __init__(self, view: nn.Module):
        super().__init__()
        self.view, self.head = view, nn.Sequential(nn.GELU(), nn.Linear(CODE, BLOCKS**2))

    def forward(self, images: Images, labels: Labels, random: Random = None) -> Float[Tensor, ""]:
        others = images.roll(1, 0)
        mixed = mix(images, others, random)
        apart = [F.adaptive_avg_pool2d((mixed - of).abs().mean(1), BLOCKS).flatten(1) for of in (images, others)]
        wanted = torch.minimum(*apart)
        return (self.head(self.view(mixed)) - wanted).square().mean() / wanted.var().clamp(min=1e-12)


class Assess(nn.Module):
    """How much of each kind of damage was done? Mean squared error of the amounts. Needs no labels."""

    def __init__(self, view: nn.Module):
        super().__init__()
        self.view, self.head = view, nn.Sequential(nn.GELU(), nn.Linear(CODE, KINDS))

    def forward(self, images: Images, labels: Labels, random: Random = None) -> Float[Tensor, ""]:
        damaged, amounts = damage(cut(images, CROP, random), random)
        return (self.head(self.view(damaged)) - amounts).square().mean()


def cut(images: Images, side: int, random: Random = None) -> Float[Tensor, "n c s t"]:
    """A window of at most side x side pixels, at a random place."""
    h, w = images.shape[2:]
    top, left = (int(torch.randint(max(0, pixels - side) + 1, (), generator=random)) for pixels in (h, w))
    return images[:, :, top : top + side, left : left + side]


def augment(
    images: Images, turn: float = 0.2, zoom: float = 0.15, shift: float = 0.12, random: Random = None
) -> Images:
    """Each image turned (radians), zoomed and shifted (share of the side) a little, at random; edges are repeated."""
    amounts = 2 * torch.rand(4, len(images), generator=random) - 1
    angle, scale, right, down = amounts * torch.tensor([turn, zoom, shift, shift])[:, None]
    cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
    matrix = torch.stack([cos, -sin, 2 * right, sin, cos, 2 * down], 1).unflatten(1, (2, 3))
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def mix(images: Images, others: Images, random: Random = None) -> Images:
    """Each image with a rectangle of another in it: blended, or through a ragged mask; a fifth of them stay whole."""
    n, h, w = len(images), *images.shape[2:]
    rand = partial(torch.rand, generator=random)
    low, size = 0.9 * rand(n, 2) - 0.2, 0.25 + 0.5 * rand(n, 2)  # shares of the sides

    def within(pixels: int, axis: int) -> Tensor:
        place = (torch.arange(pixels) + 0.5) / pixels - low[:, axis, None]
        return (place > 0) & (place < size[:, axis, None])

    rectangle = (within(h, 0)[:, None, :, None] & within(w, 1)[:, None, None, :]) & (rand(n, 1, 1, 1) < 0.8)
    ragged = F.interpolate(torch.randn(n, 1, 6, 6, generator=random), (h, w), mode="bilinear", align_corners=True) > 0
    amount = torch.where(rand(n, 1, 1, 1) < 0.5, rand(n, 1, 1, 1), ragged.float())
    return images + rectangle * amount * (others - images)


def damage(images: Images, random: Random = None) -> tuple[Images, Float[Tensor, "n 5"]]:
    """Images blurred, faded, tinted, crossed by a pattern of pixels and made noisy, each in half of the cases.

    Returns them with the amount of each, from 0 to 1.
    """
    n, c, h, w = images.shape
    amounts = torch.rand(n, KINDS, generator=random) * (torch.rand(n, KINDS, generator=random) < 0.5)
    blur, fade, tint, pattern, noise = amounts.T[..., None, None, None]
    kernel = torch.exp(-(torch.arange(-2.0, 3) ** 2) / 2 / (0.05 + 0.9 * blur.view(n, 1)) ** 2)  # sd up to 0.95 pixels
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None, None]
    x = F.pad(images, (2, 2, 2, 2), mode="replicate").reshape(1, n * c, h + 4, w + 4)
    x = F.conv2d(F.conv2d(x, kernel, groups=n * c), kernel.mT, groups=n * c).view(n, c, h, w)
    mean = x.mean((2, 3), keepdim=True)
    x = (mean + (x - mean) * (1 - 0.4 * fade)) * (1 + 0.15 * tint * torch.randn(n, c, 1, 1, generator=random))
    column, row = torch.arange(w).expand(h, w), torch.arange(h)[:, None].expand(h, w)
    boards = torch.stack([column, row, column + row])[torch.randint(3, (n,), generator=random)][:, None] % 2 * 2 - 1
    return x + 0.06 * pattern * boards + 0.1 * noise**2 * torch.randn(x.shape, generator=random), amounts
