"""Rows of the world: captions, and a scene that each is shown by.

Letters: n rows.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from irdm.ops.sampling import generator_for
from irdm.world.captions import CATEGORIES, Ask, placements
from irdm.world.scene import EMPTY, code, draw_scenes
from irdm.world.splits import Side, captions_of, palette


def make(count: int, seed: int, side: Side) -> tuple[Float32[Tensor, "n 3 16 16"], list[str], Int64[Tensor, " n"]]:
    """(pictures, captions, numbers of their categories) of `count` rows, the six categories taking turns.

    Compositions are alike likely within a category, and so are their captions, places and, where none is asked for,
    colours.
    """
    generator = generator_for("world", seed, side)
    by_category, uniform = captions_of(side), torch.rand(count, 7, generator=generator, dtype=torch.float64).tolist()
    captions, cells = [], []
    for row, numbers in enumerate(uniform):
        ask, texts = _pick(by_category[CATEGORIES[row % len(CATEGORIES)]], numbers[0])
        captions.append(_pick(texts, numbers[1]))
        cells.append(_scene(ask, numbers[2:]))
    category = torch.arange(count) % len(CATEGORIES)
    return draw_scenes(torch.tensor(cells), generator), captions, category


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
