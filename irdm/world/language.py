"""What the world's text encoder learns to read: sentences, and the meaning of each as seven small choices.

Letters: n sentences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from irdm.ops.sampling import generator_for
from irdm.world.captions import OPENINGS, RELATIONS, VOCABULARY, Ask, Part, paraphrases, placements, read
from irdm.world.scene import CELLS, COLOURS, SHAPES

PHRASES = (*(text.strip() for text in OPENINGS if text), *(w for ways in RELATIONS.values() for w in ways if " " in w))
TOKENS = (*PHRASES, "that is", "together with", *VOCABULARY, *map(str, range(1, CELLS + 1)))
"""Words, and phrases that are read as one."""
LONGEST = 12
"""Tokens of the longest sentence, and one more, which has read all of it."""
CHOICES = (1 + len(RELATIONS), *(1 + len(SHAPES), 1 + len(COLOURS), 1 + CELLS) * 2)
"""How many ways there are for the relation and, of two parts, shape, colour and number; 0 is none."""


def choices(captions: Sequence[str]) -> Int64[Tensor, "n 7"]:
    """The meaning of each caption. Raises ValueError as `read` does, and for more than two parts."""
    rows = []
    for caption in captions:
        ask = read(caption)
        if len(ask.parts) > 2:
            raise ValueError(f"The caption {caption!r} has {len(ask.parts)} parts; at most two can be read.")
        row = [[None, *RELATIONS].index(ask.relation)]
        for part in (*ask.parts, None)[:2]:
            colours = [None, *COLOURS]
            row += [1 + SHAPES.index(part.shape), colours.index(part.colour), part.many] if part else [0, 0, 0]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, len(CHOICES))


def sentences(count: int, seed: int) -> list[str]:
    """Sentences at random that scenes can show, three in four of two parts: more than captions, and of every kind."""
    generator, found = generator_for("sentences", seed), []

    def pick(some: Sequence):
        return some[int(torch.randint(len(some), (1,), generator=generator))]

    while len(found) < count:
        shapes = [SHAPES[k] for k in torch.randperm(len(SHAPES), generator=generator)[: pick((1, 2, 2, 2))].tolist()]
        parts = tuple(Part(shape, pick((None, *COLOURS)), pick((1, 1, 1, 2, 3, 4))) for shape in shapes)
        ask = Ask(parts, pick((None, *RELATIONS)) if len(parts) > 1 else None)
        if placements(ask) and (texts := paraphrases(ask)):
            found.append(pick(texts))
    return found
