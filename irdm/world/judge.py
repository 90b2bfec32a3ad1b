"""The exact judge: which objects a picture of the world shows, read from its pixels. Nothing of it is learned.

The background is the plane that fits the outermost pixels best. In each cell every template is fitted with the colour
that suits it best, by least squares; the best template is the object, unless it leaves too much unexplained or its
colour is none of the world's. Such a cell is UNCLEAR, and no caption is shown by a picture that has one.

Letters: n pictures, t templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from irdm.world.captions import Ask, placements, read
from irdm.world.scene import COLOURS, EMPTY, SIDE, named, plane, plane_basis, split_cells, templates

UNCLEAR = -2
QUIET = 0.06  # root mean square difference to the background up to which a cell is empty
LEFT = 0.25  # share of a cell's squared difference to the background that its object may leave unexplained
FAR = 0.25  # largest distance of a colour to that which it is read as, in RGB of 0 to 1
AT_ONCE = 1024


def read_scenes(images: Float[Tensor, "n c h w"]) -> Int64[Tensor, "n 4"]:
    """The cells of each picture: EMPTY, UNCLEAR, or the number of an object. Raises ValueError for another shape."""
    if images.ndim != 4 or images.shape[1:] != (3, SIDE, SIDE):
        raise ValueError(f"Got images {tuple(images.shape)}; pictures of the world are [n, 3, {SIDE}, {SIDE}].")
    parts = [_read(block) for block in images.float().cpu().split(AT_ONCE)]
    return torch.cat(parts) if parts else torch.empty(0, 4, dtype=torch.int64)


def _read(images: Tensor) -> Tensor:
    ring, solve = _border()
    background = plane((images.flatten(2)[:, :, ring] @ solve.T).mT)
    behind, seen = (split_cells(part).flatten(3) for part in (background, images))  # [n, 4, 3, 49]
    apart = seen - behind
    there = apart.square().sum((2, 3))  # [n, 4]
    bank = templates()
    cover = bank.coverage.flatten(1)  # [t, 49]
    # seen - (1 - cover) behind = cover colour is fitted: the left side's square, less what the best colour explains
    weight, squared = cover.square().sum(1), cover.square()
    along = apart @ cover.T + behind @ squared.T  # [n, 4, 3, t]
    whole = there[..., None] + 2 * (apart * behind).sum(2) @ cover.T + behind.square().sum(2) @ squared.T
    colour, left = along / weight, whole - (along.square() / weight).sum(2)
    least, best = left.min(2)
    shade = colour.gather(3, best[:, :, None, None].expand(-1, -1, 3, 1))[..., 0]
    known = torch.tensor([*COLOURS.values()]) / 255
    away, nearest = torch.cdist(shade, known).min(2)
    cells = bank.shape[best] * len(COLOURS) + nearest
    cells[(least > LEFT * there) | (away > FAR)] = UNCLEAR
    cells[there <= QUIET**2 * apart[0, 0].numel()] = EMPTY
    cells[~images.flatten(1).isfinite().all(1)] = UNCLEAR
    return cells


@cache
def _border() -> tuple[Tensor, Tensor]:
    """Indices of the outermost pixels [60], and the matrix [3, 60] that gives the plane through them."""
    inner = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    ring = (~inner).flatten().nonzero()[:, 0]
    return ring, torch.linalg.pinv(plane_basis().flatten(1)[:, ring].T.double()).float()


def shows(cells: Sequence[int], ask: Ask) -> bool:
    """Whether a scene is what was asked for: these objects, where they should be, and no others."""
    objects = [None if cell == EMPTY else ("?", "?") if cell == UNCLEAR else named(cell) for cell in cells]
    return any(
        all(
            seen is None if number < 0 else seen is not None and _fits(seen, ask, number)
            for number, seen in zip(placed, objects, strict=True)
        )
        for placed in placements(ask)
    )


def _fits(seen: tuple[str, str], ask: Ask, number: int) -> bool:
    part = ask.parts[number]
    return seen[0] == part.shape and part.colour in (None, seen[1])


def correct(images: Float[Tensor, "n c h w"], captions: Sequence[str]) -> Bool[Tensor, " n"]:
    """Whether each picture shows what its caption asks for. Raises ValueError as `read_scenes` and `read` do."""
    if len(images) != len(captions):
        raise ValueError(f"Got {len(images)} images for {len(captions)} captions; give one each.")
    scenes = read_scenes(images).tolist()
    return torch.tensor(
        [shows(cells, read(text)) for cells, text in zip(scenes, captions, strict=True)], dtype=torch.bool
    )
