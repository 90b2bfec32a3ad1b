"""Near copies: a calibrated nearest-neighbour test, and the look at small pictures that needs no encoder.

How alarming an image is: its distance to the nearest train image over its distance to the fifth nearest. An image of no
train image in particular is about as far from both; train images saved again, as JPEG or darker, lie near one alone.
The ratio knows its neighbourhood: smooth images, and crowded classes, have near neighbours without being copies.

The test: under no copying the judged images and the fresh real ones are alike, so that of the k smallest ratios among
both together the judged ones have a hypergeometric number (exactly, whatever the ratio). It is asked at five k; the
smallest chance counts, five times. What is left over at that k is the share of near copies beyond what is natural.

Small pictures are compared without brightness and most contrast: grey, their rim cut off, averaged to 8 x 8 numbers.
Each is looked at as it is, moved by a pixel, and mirrored; so are the fresh images.

What an encoder says counts as far as the pictures bear it out. Defects move images to another place of its features,
where fewer directions are left (faded photographs have little of what `bands` measures), and there ratios are smaller
without any copying; the picture of a copy is near that of the same train image too.

Letters: n images, v fresh real ones, m train images, c channels, h height, w width, d numbers a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from irdm.metrics.neighbours import nearest_neighbours
from irdm.ops.rows import Rows, row_blocks
from irdm.ops.sampling import generator_for

FIFTH = 5  # the neighbour that says how crowded a place is: later than the second, since train has duplicates too
LEVELS = (0.005, 0.01, 0.02, 0.04, 0.08)  # of all ratios together, at which the test is asked
SIDE, RIM = 8, 1  # numbers a side of a described picture; pixels that are cut off, which a move brings in
FLAT = 8.0  # grey levels: contrast far below it is left as it is, since taking it out would make much of noise
GREY = (0.299, 0.587, 0.114)  # ITU-R 601
BLOCK = 4096  # pictures that are described at once


class Nearest(NamedTuple):
    """How near images come to train."""

    ratio: Float64[Tensor, " n"]
    """Distance to the nearest train image over that to the fifth nearest: 0 for a copy, about 1 for fresh images."""
    row: Int64[Tensor, " n"]
    """That train image."""


class Found(NamedTuple):
    """What the test says."""

    excess: float
    """Share of the judged images at least as near as `limit`, less that of the fresh ones; at least 0."""
    limit: float
    """The ratio up to which images are counted: that of the most alarming level, among all ratios or the fresh ones."""
    chance: float
    """Probability that fresh real images in the place of the judged ones are as near, at the most alarming level."""


def ratios(distance: Float[Tensor, "n k"]) -> Float64[Tensor, " n"]:
    """Nearest over furthest of the distances to the k nearest, upwards; 0 where the nearest is 0."""
    near, far = distance[:, 0].double(), distance[:, -1].double()
    return torch.where(near > 0, near / far, 0.0)


def neighbours_of(train: Rows) -> int:
    """How many neighbours the ratio looks at: five, or as many as there are."""
    return min(FIFTH, len(train))


def nearest_pictures(pictures: Rows, train: Float32[Tensor, "m d"]) -> Nearest:
    """How near thumbnails [n, c, h, w] come to `described` train images, in the look that comes nearest.

    A picture that is nearer to one without contrast than to any train image shows nothing of it: its ratio is 1.
    """
    found, k = [], neighbours_of(train)
    for block in row_blocks(pictures, BLOCK):
        looks = []
        for look in _looks(block):
            rows = _described(look).to(train)
            distance, index = nearest_neighbours(rows, train, k)
            flat = distance[:, 0] > rows.norm(dim=1).cpu()
            looks.append((torch.where(flat, 1.0, ratios(distance)), index[:, 0]))
        ratio, best = torch.stack([ratio for ratio, _ in looks]).min(0)
        found.append(Nearest(ratio, torch.stack([row for _, row in looks]).gather(0, best[None])[0]))
    return Nearest(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def confirmed(seen: Nearest, pictures: Nearest) -> Nearest:
    """What an encoder saw, as far as pictures say so: the larger ratio, and 1 where they name another train image."""
    ratio = torch.where(seen.row == pictures.row, torch.maximum(seen.ratio, pictures.ratio), 1.0)
    return seen._replace(ratio=ratio)


def described(pictures: Rows) -> Float32[Tensor, "n d"]:
    """Thumbnails [n, c, h, w] as rows whose distance is that of what they show."""
    return torch.cat([_described(block) for block in row_blocks(pictures, BLOCK)])


def excess(judged: Float64[Tensor, " n"], fresh: Float64[Tensor, " v"]) -> Found:
    """The test on how alarming judged and fresh images are, smaller being more so; the largest value accuses nobody."""
    both, found = torch.cat([judged, fresh]), []
    together, alone = (side[side < both.max()].sort().values for side in (both, fresh))
    for level in LEVELS if len(together) else ():
        limit = together[min(len(together), max(1, round(level * len(both)))) - 1]
        ours, theirs = int((judged <= limit).sum()), int((fresh <= limit).sum())
        chance = float(stats.hypergeom.sf(ours - 1, len(both), ours + theirs, len(judged)))
        # where many are copies, the smallest ratios are theirs alone: the level of fresh ones leaves none of them out
        if len(alone):
            limit = torch.maximum(limit, alone[min(len(alone), max(1, round(level * len(fresh)))) - 1])
        ours, theirs = ((side <= limit).double().mean().item() for side in (judged, fresh))
        found.append(Found(max(0.0, ours - theirs), float(limit), chance))
    if not found:
        return Found(0.0, 0.0, 1.0)
    most = min(found, key=lambda one: (one.chance, -one.excess))
    return most._replace(chance=min(1.0, len(LEVELS) * most.chance))


def natural_excess(fresh: Float64[Tensor, " v"], count: int, seed: int, times: int = 8) -> Float64[Tensor, " t"]:
    """What the test leaves over of fresh images among themselves: `count` random ones, or half, against the others."""
    count = min(count, len(fresh) // 2)
    orders = (torch.randperm(len(fresh), generator=generator_for("copies", seed, k)) for k in range(times))
    found = [excess(fresh[order[:count]], fresh[order[count:]]).excess for order in orders]
    return torch.tensor(found, dtype=torch.float64)


def both_sides(chance: float) -> float:
    """A one-sided p-value as that of both sides, which `Estimate.p_real` is of a score of direction "real"."""
    return min(1.0, 2 * chance)


def among(pictures: Rows, others: Rows) -> Bool[Tensor, " n"]:
    """Which thumbnails [n, c, h, w] are, to the byte, also among others."""
    if pictures.shape[1:] != others.shape[1:]:
        return torch.zeros(len(pictures), dtype=torch.bool)
    known = set(_bytes(others))
    return torch.tensor([one in known for one in _bytes(pictures)])


def exact_repeats(pictures: Rows) -> int:
    """How many thumbnails [n, c, h, w] are, to the byte, an earlier one."""
    return len(pictures) - len(set(_bytes(pictures)))


def _bytes(pictures: Rows) -> Iterator[bytes]:
    for block in row_blocks(pictures, BLOCK):
        for picture in block.cpu().numpy():
            yield picture.tobytes()


def _described(pictures: UInt8[Tensor, "n c h w"] | Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n d"]:
    rows = pictures.float()
    if rows.shape[1] == 3:
        rows = (rows * rows.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    rows = rows[..., RIM:-RIM, RIM:-RIM]
    rows = F.adaptive_avg_pool2d(rows, (min(SIDE, rows.shape[2]), min(SIDE, rows.shape[3]))).flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    return rows / (rows.norm(dim=1, keepdim=True) + FLAT * rows.shape[1] ** 0.5)


def _looks(pictures: UInt8[Tensor, "n c h w"]) -> Iterator[Float32[Tensor, "n c h w"]]:
    """Pictures as they are and moved by a pixel up, down, left and right; each also mirrored."""
    height, width = pictures.shape[2:]
    wide = F.pad(pictures.float(), (1, 1, 1, 1), mode="replicate")
    for y, x in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2)):
        look = wide[..., y : y + height, x : x + width]
        yield look
        yield look.flip(3)
