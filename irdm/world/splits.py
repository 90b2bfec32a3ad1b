"""Which compositions are trained on and which are held out, and the captions of both.

Held out, so that no training caption has them: some colours of a shape, a pair of shapes, numbers of a shape, and
places of a shape to another. A single object cannot be composed anew: there, ways to say it are held out.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Literal

import torch

from irdm.ops.sampling import generator_for
from irdm.world.captions import CATEGORIES, RELATIONS, Ask, Part, paraphrases
from irdm.world.scene import CELLS, COLOURS, SHAPES

Side = Literal["seen", "held-out"]
WAYS = 8  # to say each composition
HELD_COLOURS = {("circle", "yellow"), ("square", "white"), ("triangle", "blue"), ("cross", "red")}
HELD_PAIR = {"square", "cross"}
HELD_COUNTS = {("triangle", 3), ("circle", 4)}
HELD_PLACES = {("triangle", "left of", "circle"), ("circle", "above", "square")}


def is_held_out(ask: Ask) -> bool:
    """Whether a composition is in no training caption."""
    ask = ask.meaning
    shapes = [part.shape for part in ask.parts]
    return (
        any(part[:2] in HELD_COLOURS or (part.shape, part.many) in HELD_COUNTS for part in ask.parts)
        or set(shapes) >= HELD_PAIR
        or (ask.relation is not None and (shapes[0], ask.relation, shapes[1]) in HELD_PLACES)
    )


def palette(shape: str) -> tuple[str, ...]:
    """The colours of objects whose colour is not asked for: a picture shows no held-out one that it need not."""
    return tuple(colour for colour in COLOURS if (shape, colour) not in HELD_COLOURS)


@cache
def compositions() -> dict[str, tuple[Ask, ...]]:
    """All 460, by category."""
    pairs = [*permutations(SHAPES, 2)]
    found: dict[str, list[Ask]] = {
        "single_object": [Ask((Part(shape),)) for shape in SHAPES],
        "two_object": [Ask((Part(one), Part(two))) for one, two in pairs],
        "counting": [Ask((Part(shape, None, count),)) for shape in SHAPES for count in range(2, CELLS + 1)],
        "colors": [Ask((Part(shape, colour),)) for shape in SHAPES for colour in COLOURS],
        "position": [Ask((Part(one), Part(two)), relation) for one, two in pairs for relation in RELATIONS],
        "color_attr": [
            Ask((Part(one, first), Part(two, second)))
            for one, two in pairs
            for first, second in permutations(COLOURS, 2)
        ],
    }
    return {category: tuple(found[category]) for category in CATEGORIES}


@cache
def captions_of(side: Side) -> dict[str, tuple[tuple[Ask, tuple[str, ...]], ...]]:
    """By category: each composition of a side with its captions, at most eight, the plainest first where it is seen."""
    held = side == "held-out"
    found = {}
    for category, asks in compositions().items():
        single = category == "single_object"
        chosen = [ask for ask in asks if single or is_held_out(ask) == held]
        found[category] = tuple((ask, _some(ask, held and single)) for ask in chosen)
    return found


def _some(ask: Ask, others: bool) -> tuple[str, ...]:
    """The plainest text and seven more at random; or those that are left."""
    texts = paraphrases(ask)
    order = torch.randperm(len(texts) - 1, generator=generator_for("world paraphrases", texts[0])).tolist()
    ordered = [texts[0], *(texts[1 + place] for place in order)]
    most = min(WAYS, len(ordered) - 2)
    return tuple(ordered[most:][:WAYS] if others else ordered[:most])
