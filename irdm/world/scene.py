"""The world: pictures of 16x16 pixels with up to four coloured shapes, one in each cell of 2x2, on a plain background.

A scene is its cells, int64 [4], row by row: EMPTY, or `code(shape, colour)`. Sizes, places within the cell, shades and
the background are drawn at random. A ring of one pixel around the four cells of 7x7 is always background.

Letters: n scenes, t templates.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

CELLS, CELL, SIDE = 4, 7, 16
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 45, 45),
    "green": (50, 175, 70),
    "blue": (55, 90, 230),
    "yellow": (235, 210, 60),
    "purple": (165, 60, 205),
    "white": (240, 240, 240),
}
"""Levels of red, green and blue; a scene's shade of it is up to SHADE away in each."""
SIZES = (5, 6, 7)  # pixels a side
SHADE = 15  # levels
EMPTY = -1
FINE = 8  # points of a pixel, across and down, of which those within a shape are counted
LEVEL, TINT, SLOPE = (0.14, 0.30), 0.05, 0.04  # of the background: grey, colour, change from the middle to an edge


def code(shape: str, colour: str) -> int:
    """The number of an object in a cell."""
    return SHAPES.index(shape) * len(COLOURS) + [*COLOURS].index(colour)


def named(number: int) -> tuple[str, str]:
    """(shape, colour) of the number of an object."""
    shape, colour = divmod(number, len(COLOURS))
    return SHAPES[shape], [*COLOURS][colour]


class Templates(NamedTuple):
    """Every shape in every size at every place within a cell."""

    coverage: Float32[Tensor, "t 7 7"]
    """Share of each pixel that the object covers."""
    shape: Int64[Tensor, " t"]
    """Number of the shape."""
    size: Int64[Tensor, " t"]
    """Number of the size."""


@cache
def templates() -> Templates:
    """All 56 of them; those of a shape and a size stand together."""
    found = [
        (torch.nn.functional.pad(_coverage(shape, size), (left, CELL - size - left, top, CELL - size - top)), kind, big)
        for kind, shape in enumerate(SHAPES)
        for big, size in enumerate(SIZES)
        for top in range(CELL - size + 1)
        for left in range(CELL - size + 1)
    ]
    coverage, kinds, sizes = zip(*found, strict=True)
    return Templates(torch.stack(coverage), torch.tensor(kinds), torch.tensor(sizes))


def _coverage(shape: str, size: int) -> Float32[Tensor, "s s"]:
    points = (torch.arange(size * FINE) + 0.5) * 2 / (size * FINE) - 1  # from -1 to 1
    y, x = torch.meshgrid(points, points, indexing="ij")
    within = {
        "circle": x**2 + y**2 <= 1,
        "square": torch.ones_like(x, dtype=torch.bool),
        "triangle": 2 * x.abs() <= 1 + y,
        "cross": torch.minimum(x.abs(), y.abs()) <= 1 / 3,
    }[shape]
    return within.float().reshape(size, FINE, size, FINE).mean((1, 3))


def draw_scenes(cells: Int64[Tensor, "n cells"], generator: torch.Generator) -> Float32[Tensor, "n 3 16 16"]:
    """A picture of each scene, every value k/255. Raises ValueError for a cell that is neither EMPTY nor an object."""
    most = len(SHAPES) * len(COLOURS)
    if cells.ndim != 2 or cells.shape[1] != CELLS or ((cells < EMPTY) | (cells >= most)).any():
        raise ValueError(
            f"Got cells of shape {tuple(cells.shape)}; expected [n, {CELLS}] of {EMPTY} for none, or 0 to {most - 1}."
        )

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    n, bank = len(cells), templates()
    shape, colour = cells.clamp(min=0) // len(COLOURS), cells.clamp(min=0) % len(COLOURS)
    size = (uniform(n, CELLS) * len(SIZES)).long()
    groups = torch.bincount(bank.shape * len(SIZES) + bank.size, minlength=len(SHAPES) * len(SIZES))
    group = shape * len(SIZES) + size
    chosen = (groups.cumsum(0) - groups)[group] + (uniform(n, CELLS) * groups[group]).long()
    cover = bank.coverage[chosen] * (cells != EMPTY)[:, :, None, None]
    shades = torch.tensor([*COLOURS.values()])[colour] / 255 + (2 * uniform(n, CELLS, 3) - 1) * SHADE / 255
    low, high = LEVEL
    level = low + (high - low) * uniform(n, 1) + (2 * uniform(n, 3) - 1) * TINT
    slopes = (2 * uniform(n, 2, 3) - 1) * SLOPE
    image = plane(torch.cat([level[:, None], slopes], 1))
    inner = split_cells(image)
    inner += cover[:, :, None] * (shades[..., None, None] - inner)
    image[:, :, 1:-1, 1:-1] = join_cells(inner)
    return (image * 255).round().clamp(0, 255) / 255


def plane(coefficients: Float32[Tensor, "n 3 3"]) -> Float32[Tensor, "n 3 16 16"]:
    """Backgrounds: coefficients (at the middle, from left to right, from top to bottom) of each channel."""
    return torch.einsum("nkc,kyx->ncyx", coefficients, plane_basis())


@cache
def plane_basis() -> Float32[Tensor, "3 16 16"]:
    """One, x and y of each pixel, from -1 to 1."""
    line = torch.linspace(-1, 1, SIDE)
    return torch.stack([torch.ones(SIDE, SIDE), line.expand(SIDE, SIDE), line[:, None].expand(SIDE, SIDE)])


def split_cells(images: Float32[Tensor, "n c 16 16"]) -> Float32[Tensor, "n 4 c 7 7"]:
    """The four cells of each picture, row by row."""
    n, c = images.shape[:2]
    inner = images[:, :, 1:-1, 1:-1].reshape(n, c, 2, CELL, 2, CELL)
    return inner.permute(0, 2, 4, 1, 3, 5).reshape(n, CELLS, c, CELL, CELL)


def join_cells(cells: Float32[Tensor, "n 4 c 7 7"]) -> Float32[Tensor, "n c 14 14"]:
    """What `split_cells` took apart."""
    n, _, c = cells.shape[:3]
    return cells.reshape(n, 2, 2, c, CELL, CELL).permute(0, 3, 1, 4, 2, 5).reshape(n, c, 2 * CELL, 2 * CELL)
