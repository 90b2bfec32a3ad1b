"""Scenes paired with noise, so that a flow between the two is nearly straight.

Of all scenes that a caption may have, each as likely as before, one is chosen by the noise: objects stand where the
noise is most like them, and colours that are not named are those that its tint is most like. It is an optimal transport
of these two choices (Tong et al., 2023, arXiv 2302.00482, take it from samples; here it is exact). Places are alike
likely by symmetry, since the noise of all cells has one law; colours by a price on each.

Letters: n rows, k colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float32
from torch import Tensor

from irdm.ops.sampling import generator_for
from irdm.world.captions import placements, read
from irdm.world.scene import (
    CELLS,
    COLOURS,
    EMPTY,
    LEVEL,
    SHAPES,
    SIDE,
    SIZES,
    code,
    draw_scenes,
    split_cells,
    templates,
)
from irdm.world.splits import palette

ROUNDS, TRIED = 400, 20_000  # that the prices are found in, and points they are found on


def paired(
    captions: Sequence[str], generator: torch.Generator
) -> tuple[Float32[Tensor, "n 3 16 16"], Float32[Tensor, "n 3 16 16"]]:
    """(pictures, noise): of each caption a picture that shows it, and standard normal noise.

    Raises ValueError for a caption that cannot be read or shown.
    """
    noise = torch.randn(len(captions), 3, SIDE, SIDE, generator=generator)
    cells = split_cells(noise)
    scenes = [_scene(caption, cells[row]) for row, caption in enumerate(captions)]
    return draw_scenes(torch.tensor(scenes, dtype=torch.int64).reshape(-1, CELLS), generator), noise


def _scene(caption: str, noise: Float32[Tensor, "4 3 7 7"]) -> list[int]:
    ask = read(caption)
    like = [[float((cell * _object(part.shape, part.colour)).sum()) for part in ask.parts] for cell in noise]
    placed = max(placements(ask), key=lambda some: sum(like[cell][part] for cell, part in enumerate(some) if part >= 0))
    parts = [None if number < 0 else ask.parts[number] for number in placed]
    return [
        EMPTY if part is None else code(part.shape, part.colour or _tint(part.shape, cell))
        for part, cell in zip(parts, noise, strict=True)
    ]


def _tint(shape: str, noise: Float32[Tensor, "3 7 7"]) -> str:
    """A colour of a shape, each alike likely, whatever `_object` says of the noise."""
    tints, prices = _tints(shape)
    seen = (noise * _cover(shape)).sum((1, 2)) / _cover(shape).norm()
    return palette(shape)[int((tints @ seen + prices).argmax())]


@cache
def _cover(shape: str) -> Float32[Tensor, "7 7"]:
    """Share of each pixel that an object of this shape covers, over all sizes and places."""
    bank, number = templates(), SHAPES.index(shape)
    sizes = [bank.coverage[(bank.shape == number) & (bank.size == size)].mean(0) for size in range(len(SIZES))]
    return torch.stack(sizes).mean(0)


@cache
def _object(shape: str, colour: str | None) -> Float32[Tensor, "3 7 7"]:
    """What an object adds to the background."""
    colours = _colours((colour,) if colour else palette(shape))
    return (colours.mean(0) - sum(LEVEL) / 2)[:, None, None] * _cover(shape)


@cache
def _tints(shape: str) -> tuple[Float32[Tensor, "k 3"], Float32[Tensor, " k"]]:
    """Colours of a shape without what they have in common, and prices at which each is the choice of as much noise."""
    colours = _colours(palette(shape))
    common = colours.mean(0) - sum(LEVEL) / 2
    tints = colours - colours.mean(0)
    tints -= torch.outer(tints @ common, common) / common.square().sum()
    points = torch.randn(TRIED, 3, generator=generator_for("tints")) @ tints.T
    prices = torch.zeros(len(tints))
    for done in range(ROUNDS):
        share = torch.bincount((points + prices).argmax(1), minlength=len(tints)) / TRIED
        prices += (1 / len(tints) - share) * (0.5 if done < ROUNDS // 2 else 0.1)
    return tints, prices


def _colours(names: Sequence[str]) -> Float32[Tensor, "k 3"]:
    return torch.tensor([COLOURS[name] for name in names]) / 255
