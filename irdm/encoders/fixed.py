"""Fixed views of images: statistics that somebody wrote down, each blind to what another sees. Nothing is trained.

A view maps images [n, c, h, w] in [0, 1], any c and at least 4 x 4 pixels, to n rows, differentiably. What it puts out
is whitened afterwards (`Whitened`), apart from `pixels`, which is left raw to weigh what varies most. Three things let
a view see noise, blur or JPEG where the images themselves vary a lot: it looks at full resolution through filters that
sum to zero, so brightness drops out; it pools sizes of responses and takes their logarithm; and whitened, no direction
outweighs the rest.

Letters: n rows, c channels, h height, w width, d feature numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from irdm.ops.convolution import conv2d

Images = Float[Tensor, "n c h w"]
Rows = Float[Tensor, "n d"]

GREY = 1 / 255  # a grey level
EPS = (2 * GREY) ** 2  # added to energies: steps below two grey levels, as of rounding, hardly count
CELLS = 2  # local statistics are averaged over a grid of 2 x 2 cells


class Whitened(nn.Module):
    """A view's leading principal components on real images, each at unit variance, their tails shortened by asinh.

    The variance of a component has a floor: 0.01 of the view's unit, so what never varies is not blown up. asinh keeps
    a few odd images from deciding the distance between two real draws.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, view: nn.Module, inputs: int, dim: int):
        """`inputs` numbers of the view become `dim`. Blank until `fit`: every row is zero."""
        super().__init__()
        self.view, self.floor = view, 0.01
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("axes", torch.zeros(inputs, dim))

    def fit(self, rows: Float32[Tensor, "n d"]) -> None:
        """Find the components of the view's rows for real images, in float64."""
        values, vectors = torch.linalg.eigh(rows.double().T.cov())  # ascending
        scale = (values.clamp_min(0) + self.floor**2).rsqrt()
        self.mean.copy_(rows.double().mean(0))
        self.axes.copy_((vectors * scale)[:, -self.axes.shape[1] :])

    def forward(self, images: Images) -> Rows:
        return ((self.view(images) - self.mean) @ self.axes).asinh()


class Pixels(nn.Module):
    """Pixels, averaged to at most `side` x `side`, flattened.

    Raw, it weighs what varies most: brightness, colour, where things are. Whitened, every direction counts alike:
    layout, contrast, shifts. Blind to texture finer than a cell.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, images: Images) -> Rows:
        return shrink(images, self.side).flatten(1)


class Bands(nn.Module):
    """Log energies of horizontal, vertical and diagonal differences (Haar wavelets) at up to three scales, by colour.

    Sees noise, blur, JPEG, checkerboards. Blind to content; of colour it has only the average of each cell.
    """

    colors: Tensor
    differences: Tensor

    def __init__(self, channels: int, scales: int = 3):
        super().__init__()
        self.scales = scales
        haar = torch.tensor([[[-1.0, 1], [-1, 1]], [[-1, -1], [1, 1]], [[1, -1], [-1, 1]]]) / 2
        self.register_buffer("colors", opponent(channels))
        self.register_buffer("differences", haar[:, None].repeat(channels, 1, 1, 1))

    def forward(self, images: Images) -> Rows:
        x = conv2d(images, self.colors)
        found = [F.adaptive_avg_pool2d(x, CELLS)]
        for _ in range(self.scales):
            if min(x.shape[2:]) < 4:
                break
            planes = x.flatten(0, 1)[:, None]  # each colour by itself, by the same three filters
            energy = conv2d(planes, self.differences[:3]).square().unflatten(0, x.shape[:2]).flatten(1, 2)
            found.append((EPS + F.adaptive_avg_pool2d(energy, CELLS)).log())
            x = F.avg_pool2d(x, 2)
        return torch.cat(found, 1).flatten(1)


class Patches(nn.Module):
    """Sizes of responses to whitened patches, cut at random from real images (after Coates and Ng, 2011).

    Sees what `Bands` sees, and colour casts, by other filters. Blind to content.
    """

    filters: Tensor

    def __init__(self, shape: tuple[int, int, int], count: int = 16, size: int | None = None):
        """Blank until `cut`: every filter is zero."""
        super().__init__()
        size = size or (5 if min(shape[1:]) >= 16 else 3)
        self.register_buffer("filters", torch.zeros(count, shape[0], size, size))

    def cut(self, images: Images) -> None:
        """Take the filters from real images, at places that the global seed decides."""
        patches = some_patches(images, self.filters.shape[2])
        patches = patches - patches.mean(1, keepdim=True)
        whiten = whitening(patches, EPS)
        contrast = patches.norm(dim=1)
        steep = patches[contrast >= contrast.median()]  # flat patches have no direction
        filters = F.normalize(steep[torch.randint(len(steep), (len(self.filters),))] @ whiten, dim=1) @ whiten
        self.filters.copy_((filters - filters.mean(1, keepdim=True)).view(self.filters.shape))

    def responses(self, images: Images) -> Float[Tensor, "n k s t"]:
        """How strongly each place answers to each filter."""
        return conv2d(images, self.filters).abs()

    def forward(self, images: Images) -> Rows:
        return F.adaptive_avg_pool2d(self.responses(images), CELLS).flatten(1).log1p()


class Parts(nn.Module):
    """Sizes of responses to whitened patches of the responses to `Patches`: how edges meet within 8 pixels.

    Two layers of what Coates and Ng (2011) have one of. Blind to brightness.
    """

    filters: Tensor
    offsets: Tensor

    def __init__(self, shape: tuple[int, int, int], first: int = 8, count: int = 32):
        """Blank until `cut`."""
        super().__init__()
        self.first, self.floor = Patches(shape, first, 3), 1e-3
        size = min(3, (min(shape[1:]) - 2) // 2)
        self.register_buffer("filters", torch.zeros(count, first, size, size))
        self.register_buffer("offsets", torch.zeros(count))

    def cut(self, images: Images) -> None:
        """Take the filters of both layers from real images, at places that the global seed decides."""
        self.first.cut(images)
        patches = some_patches(images, self.filters.shape[2], self._maps)
        centred = patches - patches.mean(0)
        whiten = whitening(patches, self.floor * centred.square().mean(0).sum())
        filters = F.normalize(centred[torch.randint(len(patches), (len(self.filters),))] @ whiten, dim=1) @ whiten
        self.filters.copy_(filters.view(self.filters.shape))
        self.offsets.copy_(-filters @ patches.mean(0))

    def _maps(self, images: Images) -> Float[Tensor, "n k s t"]:
        return F.avg_pool2d(self.first.responses(images), 2).log1p()

    def forward(self, images: Images) -> Rows:
        responses = F.conv2d(self._maps(images), self.filters, self.offsets).abs()
        return F.adaptive_avg_pool2d(responses, CELLS).flatten(1).log1p()


class Gram(Patches):
    """Log energies of the responses to whitened patches, and their correlations: a texture's Gram matrix, normalised.

    After Gatys et al. (2015). Of the whole image; what `Correlation` says of pixels, of edges. Blind to layout.
    """

    pairs: Tensor

    def __init__(self, shape: tuple[int, int, int], count: int = 12):
        """Blank until `cut`."""
        super().__init__(shape, count)
        self.register_buffer("pairs", torch.triu_indices(count, count, 1))

    def forward(self, images: Images) -> Rows:
        x = conv2d(images, self.filters).flatten(2)
        energy = x.square().mean(2) + EPS
        unit = x * energy.rsqrt()[:, :, None]
        products = unit @ unit.mT / x.shape[2]
        return torch.cat([energy.log(), products[:, self.pairs[0], self.pairs[1]]], 1)


def some_patches(
    images: Images, size: int, view: Callable[[Images], Tensor] = lambda images: images
) -> Float[Tensor, "m d"]:
    """Up to 40,000 patches of size x size, cut from maps of 500 images at places that the global seed decides."""
    some = images[torch.randperm(len(images))[:500]]
    parts = (F.unfold(view(part), size) for part in some.split(10))  # [n, c * size * size, places]
    return torch.cat([part[:, :, torch.randperm(part.shape[2])[:80]].mT.flatten(0, 1) for part in parts]).double()


def whitening(rows: Float[Tensor, "m d"], floor: float | Tensor) -> Float[Tensor, "d d"]:
    """The symmetric matrix that brings their components to unit variance, but for what varies less than the floor."""
    values, vectors = torch.linalg.eigh(rows.T.cov())
    return vectors * (values.clamp_min(0) + floor).rsqrt() @ vectors.T


class Correlation(nn.Module):
    """Correlations of each pixel with its neighbours up to two pixels away, within and between colours; log energies.

    Of the whole image, less its local mean. Ratios of energies where `Bands` has energies: blur, JPEG and colour casts
    change them, a mere lack of contrast does not. Blind to layout.
    """

    colors: Tensor
    pairs: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.steps = [(0, 1), (0, 2), *((down, right) for down in (1, 2) for right in range(-2, 3))]
        self.register_buffer("colors", opponent(channels))
        self.register_buffer("pairs", torch.triu_indices(channels, channels, 1))

    def forward(self, images: Images) -> Rows:
        x = F.conv2d(images - smooth(images, 3), self.colors)
        h, w = x.shape[2:]
        energy = x.square().mean((2, 3)) + EPS
        unit = x * energy.rsqrt()[:, :, None, None]
        same = torch.einsum("nchw,ndhw->ncd", unit, unit) / (h * w)
        found = [energy.log(), same[:, self.pairs[0], self.pairs[1]]]
        for down, right in self.steps:
            here = unit[:, :, : h - down, max(0, -right) : w - max(0, right)]
            there = unit[:, :, down:, max(0, right) : w - max(0, -right)]
            products = torch.einsum("nchw,ndhw->ncd", here, there)
            found.append(products.flatten(1) / ((h - down) * (w - abs(right))))
        return torch.cat(found, 1)


class Tone(nn.Module):
    """By channel: log mean, log spread, skewness and a soft histogram of the image; correlations of the channels.

    Of images averaged to at most 32 x 32: a histogram needs no more. Sees brightness, contrast, colour casts, clipping.
    Blind to where anything is.
    """

    levels: Tensor
    pairs: Tensor

    def __init__(self, channels: int, levels: int = 8):
        super().__init__()
        self.side = 32
        self.register_buffer("levels", (torch.arange(levels) + 0.5) / levels)
        self.register_buffer("pairs", torch.triu_indices(channels, channels, 1))

    def forward(self, images: Images) -> Rows:
        x = shrink(images, self.side).flatten(2)
        mean = x.mean(2)
        deviation = x - mean[:, :, None]
        energy = deviation.square().mean(2) + EPS
        sharpness = 2 * len(self.levels)
        above = [torch.sigmoid((x - level) * sharpness).mean(2) for level in self.levels]  # one level's memory at once
        skewness = deviation.pow(3).mean(2) / energy**1.5
        unit = deviation * energy.rsqrt()[:, :, None]
        colors = (unit @ unit.mT / x.shape[2])[:, self.pairs[0], self.pairs[1]]
        return torch.cat([(mean + 0.02).log(), energy.log(), skewness, *above, colors], 1)


class Palette(nn.Module):
    """How much of an image has each colour: the log of a soft histogram over triples of levels, not over channels.

    Of images averaged to at most 32 x 32, in `levels` steps a channel; each channel by itself unless there are three.
    Sees mixtures of colours, fading and ghosts, which may leave the channels as they are. Blind to where anything is.
    """

    levels: Tensor

    def __init__(self, levels: int = 5):
        super().__init__()
        self.side = 32
        self.register_buffer("levels", torch.arange(levels) / (levels - 1))

    def shares(self, images: Images) -> Rows:
        """Of the pixels, by colour, red changing most slowly: they sum to 1, or to that for each channel by itself."""
        x = shrink(images, self.side).flatten(2)[:, :, None]
        apart = (x - self.levels[:, None]) * (len(self.levels) - 1)  # in steps
        near = (-2 * apart.square()).softmax(2)  # [n, c, levels, pixels]
        if near.shape[1] != 3:
            return near.mean(3).flatten(1)
        red, green, blue = near.unbind(1)
        return (red[:, :, None] * green[:, None]).flatten(1, 2).bmm(blue.mT).flatten(1) / near.shape[3]

    def forward(self, images: Images) -> Rows:
        return (1 / 256 + self.shares(images)).log()


def shrink(images: Images, side: int) -> Float[Tensor, "n c s t"]:
    """Averaged to at most `side` x `side` pixels."""
    size = (min(side, images.shape[2]), min(side, images.shape[3]))
    return images if size == images.shape[2:] else F.adaptive_avg_pool2d(images, size)


def smooth(images: Images, size: int) -> Images:
    """Means over size x size pixels around each (size odd, less for tiny images), over fewer at the border."""
    size = min(size, (min(images.shape[2:]) - 1) // 2 * 2 + 1)
    return F.avg_pool2d(images, size, 1, size // 2, count_include_pad=False)


def opponent(channels: int) -> Float[Tensor, "c c 1 1"]:
    """Filters for grey, red - blue, and green against both; other numbers of channels stay as they are."""
    axes = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]) if channels == 3 else torch.eye(channels)
    return F.normalize(axes, dim=1)[:, :, None, None]
