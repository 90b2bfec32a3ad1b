"""Rows of the world: captions, and a scene that each is shown by.

Letters: n rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from irdm.ops.sampling import generator_for
from irdm.world.captions import CATEGORIES, Ask, placements, read
from irdm.world.scene import CELLS, EMPTY, code, draw_scenes
from irdm.world.splits import Side, captions_of, palette


def make(
    count: int, seed: int, side: Side, mix: Sequence[str] = CATEGORIES
) -> tuple[Float32[Tensor, "n 3 16 16"], list[str], Int64[Tensor, " n"]]:
    """(pictures, captions, numbers of their categories) of `count` rows, those of the mix taking turns.

    Compositions are alike likely within a category, and so are their captions, places and, where none is asked for,
    colours.
    """
    generator = generator_for("world", seed, side)
    by_category = captions_of(side)
    captions = []
    for row, numbers in enumerate(torch.rand(count, 2, generator=generator, dtype=torch.float64).tolist()):
        _, texts = _pick(by_category[mix[row % len(mix)]], numbers[0])
        captions.append(_pick(texts, numbers[1]))
    turns = torch.tensor([CATEGORIES.index(category) for category in mix])
    return picture(captions, generator), captions, turns[torch.arange(count) % len(mix)]


def picture(captions: Sequence[str], generator: torch.Generator) -> Float32[Tensor, "n 3 16 16"]:
    """A real picture of each caption. Raises ValueError for one that cannot be read or shown."""
    numbers = torch.rand(len(captions), 1 + CELLS, generator=generator, dtype=torch.float64).tolist()
    cells = [_scene(read(caption), some) for caption, some in zip(captions, numbers, strict=True)]
    return draw_scenes(torch.tensor(cells, dtype=torch.int64).reshape(-1, CELLS), generator)


def _scene(ask: Ask, numbers: list[float]) -> list[int]:
    """The cells of one scene, decided by five numbers from 0 to 1."""
    placed = _pick(placements(ask), numbers[0])
    parts = [None if number < 0 else ask.parts[number] for number in placed]
    return [
        EMPTY if part is None else code(part.shape, part.colour or _pick(palette(part.shape), number))
        for part, number in zip(parts, numbers[1:], strict=True)
    ]


def _pick(some, number: float):
    return some[int(number * len(some))]
