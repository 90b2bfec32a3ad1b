"""Captions of the world: which scenes a text asks for, and every way to say it.

A text asks for objects (`Part`: shape, perhaps a colour, how many) and perhaps for one relation between two parts. It
is shown by scenes with these objects and no others: `placements` lists where they may stand.

    read("a photo of a disc to the left of a red box")
    -> Ask((Part("circle"), Part("square", "red")), "left of")
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from irdm.fields import nearest
from irdm.world.scene import CELLS, COLOURS, SHAPES

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""Those of GenEval (Ghosh et al., 2023, arXiv 2310.11513), by its names."""
NOUNS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "pyramid"),
    "cross": ("cross", "plus"),
}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: count for count, word in enumerate(NUMBER_WORDS)}
OPENINGS = ("", "a photo of ", "a picture of ", "an image of ", "a drawing of ")
JOINS = ("{} and {}", "{} together with {}", "both {} and {}")
RELATIONS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE = {"left of": "right of", "above": "below", "right of": "left of", "below": "above"}
EMBEDDER = "world-1"
"""What makes tau; another number when its rows change."""


class Part(NamedTuple):
    """Objects of one shape; of any colour where none is named."""

    shape: str
    colour: str | None = None
    many: int = 1


class Ask(NamedTuple):
    """What a text asks for: parts, and where the first stands, seen from the second."""

    parts: tuple[Part, ...]
    relation: str | None = None

    @property
    def category(self) -> str:
        """One of CATEGORIES: the hardest that the text has something of."""
        if self.relation:
            return "position"
        if any(part.many > 1 for part in self.parts):
            return "counting"
        coloured = any(part.colour for part in self.parts)
        return [("single_object", "two_object"), ("colors", "color_attr")][coloured][len(self.parts) > 1]

    @property
    def meaning(self) -> Ask:
        """The same for all asks that the same scenes show."""
        first, *_ = parts = self.parts
        if self.relation in ("right of", "below"):
            return Ask(parts[::-1], OPPOSITE[self.relation]).meaning
        if self.relation:
            return self
        together: Counter[tuple[str, str | None]] = Counter()
        for part in parts:
            together[part[:2]] += part.many
        return Ask(tuple(sorted((Part(*kind, count) for kind, count in together.items()), key=str)))


@cache
def placements(ask: Ask) -> tuple[tuple[int, ...], ...]:
    """Every way to fill the cells, row by row: the number of the part in each, -1 for none. () when there is none."""
    counts = [part.many for part in ask.parts]
    if sum(counts) > CELLS:
        return ()
    found = []
    for cells in product(range(-1, len(counts)), repeat=CELLS):
        if all(cells.count(number) == count for number, count in enumerate(counts)) and _stand(cells, ask.relation):
            found.append(cells)
    return tuple(found)


def _stand(cells: Sequence[int], relation: str | None) -> bool:
    """Whether all of part 0 stand so, seen from all of part 1."""
    if relation is None:
        return True
    sideways = relation in ("left of", "right of")
    first, second = ([cell % 2 if sideways else cell // 2 for cell in range(CELLS) if cells[cell] == k] for k in (0, 1))
    return max(first) < min(second) if relation in ("left of", "above") else min(first) > max(second)


def plural(noun: str) -> str:
    """Of any noun of the world."""
    return noun + ("es" if noun[-1] in "sx" else "s")


@cache
def paraphrases(ask: Ask) -> tuple[str, ...]:
    """Every text that is written for an ask, the plainest first."""
    phrases = [list(_phrases(part)) for part in ask.parts]
    if ask.relation:
        joins = ["{} " + words + " {}" for words in RELATIONS[ask.relation]]
    else:
        joins = list(JOINS) if len(phrases) > 1 else ["{}"]
    alike = [pair for pair in product(*phrases) if len({form for form, _ in pair}) == 1]
    return tuple(
        opening + join.format(*(text for _, text in some)) for opening in OPENINGS for join in joins for some in alike
    )


def _phrases(part: Part) -> Iterator[tuple[int, str]]:
    """(form, text): texts of one form go together in a caption."""
    if part.many > 1:
        word = NUMBER_WORDS[part.many]
        colour = f"{part.colour} " if part.colour else ""
        for noun in NOUNS[part.shape]:
            for form, number in enumerate((word, str(part.many), f"exactly {word}")):
                yield form, f"{number} {colour}{plural(noun)}"
        return
    forms = ("a {colour} {noun}", "a {noun} that is {colour}", "a {noun} in {colour}") if part.colour else ("a {noun}",)
    for noun in NOUNS[part.shape]:
        for form, text in enumerate(forms):
            yield form, text.format(noun=noun, colour=part.colour)


SHAPE_OF = {
    word: shape for shape, nouns in NOUNS.items() for noun in nouns for word in (noun, plural(noun))
}  # of every noun, one or several
ARTICLES = {"a": 1, "an": 1, "the": 1}
COUNTS = ARTICLES | NUMBERS
VOCABULARY = dict.fromkeys(
    [*SHAPE_OF, *COLOURS, *COUNTS]
    + re.findall(r"[a-z]+", " ".join([*OPENINGS, *JOINS, *(" ".join(w) for w in RELATIONS.values())]))
    + ["exactly", "that", "is", "are", "in", "with"]
)
EXAMPLES = "'a red circle', 'three squares', 'a photo of a cross and a disc', 'a triangle to the left of a blue box'"


@cache
def read(caption: str) -> Ask:
    """What a caption asks for.

    Raises ValueError for words that the world does not know, with the nearest that it knows; for more objects than
    there are cells; for what no scene can show; and for what is no caption.
    """
    words = re.findall(r"[^\W_]+", caption.lower())
    if unknown := [word for word in dict.fromkeys(words) if word not in VOCABULARY and not word.isdecimal()]:
        named = "; ".join(f"'{word}' is unknown{nearest(word, VOCABULARY)}" for word in unknown)
        raise ValueError(f"The caption {caption!r} has words that the world does not know: {named}.")
    text = " ".join(words)
    text = next((text.removeprefix(opening) for opening in OPENINGS[1:] if text.startswith(opening)), text)
    found = list(re.finditer(rf"\b({'|'.join(sorted(_RELATION, key=len, reverse=True))})\b", text))
    if len(found) > 1:
        raise ValueError(f"The caption {caption!r} has {len(found)} relations; at most one can be read.")
    if found:
        sides = [text[: found[0].start()], text[found[0].end() :]]
        relation = _RELATION[found[0][0]]
    else:
        sides, relation = re.split(r" and | together with | with ", text.removeprefix("both ")), None
    ask = Ask(tuple(_part(side.split(), caption) for side in sides), relation)
    if (total := sum(part.many for part in ask.parts)) > CELLS:
        raise ValueError(f"The caption {caption!r} asks for {total} objects; a scene has {CELLS} cells, one for each.")
    if not placements(ask):
        raise ValueError(
            f"No scene can show {caption!r}: of its 2 x 2 cells, one for each object, too few stand {relation} others."
        )
    return ask


_RELATION = {words: relation for relation, ways in RELATIONS.items() for words in ways}


def _part(words: Sequence[str], caption: str) -> Part:
    """An object phrase: how many, perhaps a colour, a noun, perhaps the colour behind it."""
    said = " ".join(words) or "nothing"
    rest = [word for word in words if word not in ("exactly", "that", "is", "are", "in")]
    count = COUNTS.get(rest[0], int(rest[0]) if rest and rest[0].isdecimal() else -1) if rest else -1
    nouns = [word for word in rest if word in SHAPE_OF]
    colours = [word for word in rest if word in COLOURS]
    if count < 0 or len(nouns) != 1 or len(rest) != 2 + len(colours):
        raise ValueError(f"The caption {caption!r} cannot be read at '{said}'; expected such as {EXAMPLES}.")
    if count == 0:
        raise ValueError(f"No scene is asked for by {caption!r}: '{said}' is nothing; leave it out.")
    if len(set(colours)) > 1:
        raise ValueError(f"No scene can show {caption!r}: '{said}' has the colours {' and '.join(colours)}; name one.")
    return Part(SHAPE_OF[nouns[0]], colours[0] if colours else None, count)


@cache
def _columns() -> dict[tuple, int]:
    """The columns of tau."""
    kinds = [*product(SHAPES, [None, *COLOURS])]
    names: list[tuple] = [("shape", shape) for shape in SHAPES] + [("colour", colour) for colour in COLOURS]
    names += [("count", count, shape) for count in range(1, CELLS + 1) for shape in SHAPES]
    names += [("kind", *kind) for kind in kinds]
    names += [("place", place, *kind) for place in ("left of", "right of", "above", "below") for kind in kinds]
    return {name: column for column, name in enumerate(names)}


def width() -> int:
    """Columns of tau."""
    return len(_columns())


def embed(captions: Sequence[str]) -> Float32[Tensor, "n c"]:
    """tau, rows of unit length: those of two captions are the same exactly when the same scenes show both.

    Columns count shapes, colours, objects of a shape and a colour, and who stands where; how many there are of a shape
    is a column of its own. Raises ValueError as `read` does.
    """
    asks = [read(caption).meaning for caption in captions]
    rows = {ask: _row(ask) for ask in dict.fromkeys(asks)}
    return torch.stack([rows[ask] for ask in asks]) if asks else torch.empty(0, width())


def _row(ask: Ask) -> Float32[Tensor, " c"]:
    row, columns = torch.zeros(width()), _columns()
    shapes: Counter[str] = Counter()
    for number, part in enumerate(ask.parts):
        shapes[part.shape] += part.many
        names: list[tuple] = [("shape", part.shape), ("kind", part.shape, part.colour)]
        names += [("colour", part.colour)] if part.colour else []
        if ask.relation:
            place = (ask.relation, OPPOSITE[ask.relation])[number]
            names += [("place", place, part.shape, part.colour)]
        for name in names:
            row[columns[name]] += part.many
    for shape, count in shapes.items():
        row[columns[("count", count, shape)]] = 1
    return row / row.norm()
