"""The ladder of defects: what is done to real images to see which scores notice.

A defect is a change of 8-bit images at a level, or another choice of rows. All are seeded image by image, so that an
image is changed alike whatever else is read with it, and rounded to 8 bits, as if it had been saved.

Letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from irdm.data.base import Split
from irdm.files import hash_of
from irdm.ops.kmeans import kmeans
from irdm.ops.sampling import generator_for

COARSE = 4  # pixels a side of the means that "static" keeps
TENTH = 0.1  # of the images are in the classes that "dropped" leaves out
THUMBNAIL = 8  # pixels a side of what is clustered where there are no classes
CLUSTERS = 10

Pixels = Float[Tensor, "n c h w"]
"""0 to 255, before rounding."""
Change = Callable[[Pixels, float, Sequence[torch.Generator]], Pixels]


@dataclass(frozen=True)
class Defect:
    """Something that is wrong with images, from barely to plainly visible."""

    levels: tuple[float, ...]
    """Mildest first."""
    says: str
    """What a level is called: "noise of {:g} grey levels"."""
    apply: Callable[[Split, Split, float, int], Split | None]
    """(judged, train, level, seed) -> the damaged split; None where the images cannot have the defect."""
    stated: float
    """The level that a panel must see."""

    def at(self, level: float) -> str:
        """A level in words."""
        return self.says.format(level)


class Damaged(Split):
    """Some rows of a split, in their order, changed and rounded to 8 bits. `change` gets a generator an image."""

    def __init__(
        self, split: Split, change: Change | None, level: float, seed: int, *, rows: Int64[Tensor, " n"] | None = None,
        name: str = "damaged",
    ):  # fmt: skip
        self.split, self.change, self.level, self.seed, self.name = split, change, level, seed, name
        self.rows = torch.arange(len(split)) if rows is None else rows
        self.conditions, self.image_shape = split.conditions[self.rows], split.image_shape
        self.resized = split.resized

    def read(self, rows: Int64[Tensor, " k"]) -> Float32[Tensor, "k c h w"]:
        images = self.split.read(self.rows[rows])
        if self.change is None:
            return images
        generators = [generator_for(self.name, self.seed, row) for row in rows.tolist()]
        return rounded(self.change(images * 255, self.level, generators))

    @property
    def fingerprint(self) -> str:
        """Of the images it is made from and what is done to them."""
        return hash_of([self.split.fingerprint, self.rows.tolist(), self.name, self.level, self.seed])


class NearCopies(Damaged):
    """A split whose first images are train images, of the classes of those whose place they take, saved as JPEG."""

    QUALITY = 75

    def __init__(self, split: Split, train: Split, share: float, seed: int):
        super().__init__(split, None, share, seed, name="near copies")
        self.train, self.copied = train, _alike(split, train, max(1, round(share / 100 * len(split))), seed)

    def read(self, rows: Int64[Tensor, " k"]) -> Float32[Tensor, "k c h w"]:
        images, there = super().read(rows), rows < len(self.copied)
        if there.any():
            copies = self.train.read(self.copied[rows[there]])
            images = images.clone()
            images[there] = rounded(jpeg(copies * 255, self.QUALITY, ()))
        return images


def rounded(pixels: Pixels) -> Float32[Tensor, "n c h w"]:
    """Pixels of 0 to 255 as images in [0, 1], every value k/255."""
    return (pixels.round().clamp(0, 255).float() / 255).contiguous()


def noise(pixels: Pixels, sd: float, generators: Sequence[torch.Generator]) -> Pixels:
    """Gaussian, alike in every pixel and channel."""
    return pixels + sd * torch.stack([torch.randn(pixels.shape[1:], generator=one) for one in generators])


def blur(pixels: Pixels, sigma: float, _: Sequence[torch.Generator]) -> Pixels:
    """Gaussian; edges are repeated."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    kernel, (n, c, h, w) = kernel / kernel.sum(), pixels.shape
    flat = F.pad(pixels.reshape(n * c, 1, h, w), (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(flat, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view(n, c, h, w)


def jpeg(pixels: Pixels, quality: float, _: Sequence[torch.Generator]) -> Pixels:
    """Saved as JPEG and read again; colour at half resolution, as files have it."""
    found = []
    for image in pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "JPEG", quality=round(quality))
        found.append(np.asarray(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float()


def contrast(pixels: Pixels, percent: float, _: Sequence[torch.Generator]) -> Pixels:
    """Less, about the mean of each image."""
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return mean + (1 - percent / 100) * (pixels - mean)


def darker(pixels: Pixels, percent: float, _: Sequence[torch.Generator]) -> Pixels:
    """All channels alike."""
    return pixels * (1 - percent / 100)


def cast(pixels: Pixels, percent: float, _: Sequence[torch.Generator]) -> Pixels:
    """More of the first channel, less of the last."""
    return pixels * torch.tensor([1 + percent / 100, 1, 1 - percent / 100]).view(1, 3, 1, 1)


def shift(pixels: Pixels, by: float, _: Sequence[torch.Generator]) -> Pixels:
    """To the right; the edge is repeated."""
    return F.pad(pixels, (int(by), 0, 0, 0), mode="replicate")[..., : pixels.shape[-1]]


def static(pixels: Pixels, percent: float, generators: Sequence[torch.Generator]) -> Pixels:
    """Means of 4 x 4 pixels are kept; what is left of each channel is shuffled over its pixels, and mixed in."""
    low = F.avg_pool2d(pixels, COARSE, ceil_mode=True, count_include_pad=False)
    low = low.repeat_interleave(COARSE, 2).repeat_interleave(COARSE, 3)[..., : pixels.shape[2], : pixels.shape[3]]
    rest = (pixels - low).flatten(2)
    order = torch.stack([torch.rand(rest.shape[1:], generator=one).argsort(1) for one in generators])
    shuffled = rest.gather(2, order).view_as(pixels) + low
    return pixels + percent / 100 * (shuffled - pixels)


def checkerboard(pixels: Pixels, height: float, _: Sequence[torch.Generator]) -> Pixels:
    """Up and down by turns, pixel by pixel."""
    h, w = pixels.shape[2:]
    return pixels + height * (1 - 2 * ((torch.arange(h)[:, None] + torch.arange(w)) % 2).float())


def _changed(name: str, change: Change, *, colour: bool = False):
    def apply(judged: Split, train: Split, level: float, seed: int) -> Split | None:
        return None if colour and judged.image_shape[0] != 3 else Damaged(judged, change, level, seed, name=name)

    return apply


def _dropped(judged: Split, train: Split, level: float, seed: int) -> Split | None:
    """Without a tenth of the classes; without classes, without one of ten clusters of thumbnails."""
    groups = judged.conditions.strata
    if groups is None or len(groups.unique()) < CLUSTERS / 2:  # a half of the images is more than a tenth
        groups = _clusters(judged, seed)
    sizes = torch.bincount(groups.cpu())
    order = (sizes - TENTH * len(judged)).abs().argsort(stable=True)
    gone = [group for group in order.tolist() if sizes[group]][: max(1, round(TENTH * int((sizes > 0).sum())))]
    kept = (~torch.isin(groups.cpu(), torch.tensor(gone))).nonzero()[:, 0]
    return Damaged(judged, None, level, seed, rows=kept, name="dropped") if len(kept) else None


def _clusters(split: Split, seed: int) -> Int64[Tensor, " n"]:
    """Ten clusters of small versions of the images."""
    small = [F.adaptive_avg_pool2d(part, min(THUMBNAIL, *part.shape[2:])).flatten(1) for part in split.blocks(256)]
    rows = torch.cat(small)
    centres = kmeans(rows, min(CLUSTERS, len(rows)), generator_for("dropped", seed))
    return torch.cdist(rows, centres).argmin(1)


def _duplicates(judged: Split, train: Split, level: float, seed: int) -> Split:
    """The first half of the images, each twice."""
    half = torch.arange((len(judged) + 1) // 2)
    return Damaged(judged, None, level, seed, rows=half.repeat_interleave(2), name="duplicates")


def _alike(split: Split, train: Split, count: int, seed: int) -> Int64[Tensor, " k"]:
    """Random distinct train rows of the classes of the first `count` images, where both have the same classes."""
    order = torch.randperm(len(train), generator=generator_for("near copies", seed))
    wanted, there = split.conditions.strata, train.conditions.strata
    if wanted is None or there is None or split.conditions.spec != train.conditions.spec:
        return order[:count]
    left = {label: iter(order[there.cpu()[order] == label].tolist()) for label in wanted[:count].unique().tolist()}
    found = [next(left[label], None) for label in wanted[:count].tolist()]
    spare = iter(sorted(set(order.tolist()) - set(found) - {None}))
    return torch.tensor([next(spare) if row is None else row for row in found])


DEFECTS: Mapping[str, Defect] = {
    "noise": Defect((2, 4, 8, 16, 32), "noise of {:g} grey levels", _changed("noise", noise), 8),
    "blur": Defect((0.3, 0.5, 0.8, 1.2), "a blur of {:g} pixels", _changed("blur", blur), 0.5),
    "jpeg": Defect((90, 75, 50, 30), "JPEG of quality {:g}", _changed("jpeg", jpeg), 50),
    "contrast": Defect((5, 10, 20), "contrast {:g}% lower", _changed("contrast", contrast), 10),
    "darker": Defect((2.5, 5, 10, 20), "{:g}% darker", _changed("darker", darker), 10),
    "cast": Defect((2.5, 5, 10), "a colour cast of {:g}%", _changed("cast", cast, colour=True), 5),
    "shift": Defect((1, 2), "a shift of {:g} pixels", _changed("shift", shift), 1),
    "static": Defect((10, 25, 50, 100), "static of {:g}%", _changed("static", static), 50),
    "checkerboard": Defect((2, 4, 8), "a checkerboard of {:g} grey levels", _changed("checkerboard", checkerboard), 4),
    "dropped": Defect((10,), "{:g}% of the kinds of images missing", _dropped, 10),
    "duplicates": Defect((50,), "{:g}% of the images being repeats", _duplicates, 50),
    "near copies": Defect((5,), "{:g}% near copies of train", NearCopies, 5),
}
"""Every defect by name, in the order in which they are shown."""
