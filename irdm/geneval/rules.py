"""GenEval's verdict on one image from what a detector found in it: the rules, written from their description.

Colours are asked of a function, so that the rules need no network. Source: Ghosh et al., 2023, arXiv 2310.11513.

Letters: h, w height and width of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from irdm.geneval.prompts import Prompt

CERTAIN, CERTAIN_TO_COUNT = 0.3, 0.9  # an object is one whose score is above this
MOST = 16  # objects of a class that are looked at
MARGIN = 0.1  # share of the two sizes that an offset must exceed
DIRECTION = 0.5  # share of the offset that must lie along an axis


class Detection(NamedTuple):
    """An object: its box (left, top, right, bottom) in pixels, how certain it is, and its mask where there is one."""

    box: tuple[float, float, float, float]
    score: float
    mask: Bool[Tensor, "h w"] | None = None


Objects = Mapping[str, Sequence[Detection]]
ColourOf = Callable[[Sequence[Detection], str], Sequence[str]]
"""(objects, their class) -> the colour of each."""


def certain(found: Objects, tag: str) -> dict[str, list[Detection]]:
    """By class the objects above the category's threshold, the most certain first, at most 16."""
    least = CERTAIN_TO_COUNT if tag == "counting" else CERTAIN
    sure = {
        name: sorted((one for one in every if one.score > least), key=lambda one: -one.score)[:MOST]
        for name, every in found.items()
    }
    return {name: some for name, some in sure.items() if some}


def relations(one: Detection, other: Detection) -> set[str]:
    """Where `one` is, seen from `other`: of left of, right of, above and below none, one or two.

    An offset of the centres counts on an axis beyond a tenth of the sum of both sizes there, and holds when what is
    beyond is more than half of the whole offset's length.
    """
    a, b = (np.reshape(np.asarray(each.box, float), (2, 2)) for each in (one, other))
    offset = a.mean(0) - b.mean(0)
    margin = MARGIN * (np.abs(a[1] - a[0]) + np.abs(b[1] - b[0]))
    beyond = np.maximum(np.abs(offset) - margin, 0) * np.sign(offset)
    if (np.abs(beyond) < 1e-3).all():
        return set()
    x, y = beyond / np.linalg.norm(offset)
    holds = {
        "left of": x < -DIRECTION, "right of": x > DIRECTION, "above": y < -DIRECTION, "below": y > DIRECTION
    }  # fmt: skip
    return {name for name, true in holds.items() if true}


def faults(objects: Objects, prompt: Prompt, colour_of: ColourOf) -> list[str]:
    """What of the prompt the image does not show, in words; nothing: it is correct.

    `objects` are those of `certain`. Of a class only as many as the clause asks for are looked at, the most certain;
    more than that are no fault unless `exclude` says so. A position is that of each of them to each object of the
    clause that it refers to, which must hold itself.
    """
    wrong: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in prompt.include:
        there = objects.get(clause.name, ())
        chosen, fault = there[: clause.count], None
        if len(chosen) < clause.count:
            fault = f"{clause.count} {clause.name} expected, {len(there)} found"
        elif clause.color and (seen := list(colour_of(chosen, clause.name))).count(clause.color) < clause.count:
            fault = f"{clause.count} {clause.color} {clause.name} expected, found {', '.join(seen)}"
        elif clause.position:
            relation, number = clause.position
            target = groups[number]
            if target is None:
                fault = f"{clause.name} {relation} {prompt.include[number].name}, which is not as it should be"
            elif not all(relation in relations(one, other) for one in chosen for other in target):
                fault = f"{clause.name} is not {relation} {prompt.include[number].name}"
        groups.append(None if fault else chosen)
        wrong += [fault] if fault else []
    for clause in prompt.exclude:
        if (count := len(objects.get(clause.name, ()))) >= clause.count:
            wrong.append(f"fewer than {clause.count} {clause.name} expected, {count} found")
    return wrong
