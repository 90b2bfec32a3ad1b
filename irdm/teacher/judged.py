"""What draws the world, by the exact judge: six rates and their mean, of compositions seen and held out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from irdm.generators.klein_teacher import Teacher
from irdm.ops.sampling import generator_for
from irdm.progress import Say
from irdm.world import CATEGORIES, SIDE, captions_of, correct
from irdm.world.language import LONGEST
from irdm.world.splits import Side

STEPS = (1, 4, 50)
AT_ONCE = 200


def judged_teacher(folder: Path, count: int, say: Say) -> dict[str, Any]:
    """{side: {steps: rates}} of the teacher in a folder, `count` pictures each."""
    found: dict[str, dict[str, dict[str, float]]] = {"seen": {}, "held-out": {}}
    for side in ("seen", "held-out"):
        for steps in STEPS:
            teacher = Teacher(folder, (3, SIDE, SIDE), length=LONGEST, steps=steps, precision="float32")
            found[side][str(steps)] = rates(teacher, side, count)
            say(f"{side}, {steps} steps: {found[side][str(steps)]['mean']:.3f} of the pictures are right")
    return found


def rates(draws: Callable[[Sequence[str], Sequence[int]], Tensor], side: Side, count: int) -> dict[str, float]:
    """Shares of right pictures by category, their mean, and core-milliseconds of a picture, of texts read before.

    `draws(captions, seeds)` makes pictures [n, 3, 16, 16].
    """
    captions, right = _captions(side, count), []
    for first in range(0, count, AT_ONCE):
        some = captions[first : first + AT_ONCE]
        pictures = draws(some, range(first, first + len(some)))
        right.append(correct((pictures * 255).round() / 255, some).float())
    some = captions[:AT_ONCE]
    began = time.process_time()
    draws(some, range(len(some)))
    spent = time.process_time() - began
    verdicts = torch.cat(right)
    found = {name: verdicts[k :: len(CATEGORIES)].mean().item() for k, name in enumerate(CATEGORIES)}
    return {**found, "mean": fmean(found.values()), "ms": 1000 * spent / len(some)}


def _captions(side: Side, count: int) -> list[str]:
    """The categories in turn, captions of each at random."""
    draw, found = generator_for("judged", side), []
    texts = {name: [text for _, some in asks for text in some] for name, asks in captions_of(side).items()}
    for row, number in enumerate(torch.rand(count, generator=draw).tolist()):
        some = texts[CATEGORIES[row % len(CATEGORIES)]]
        found.append(some[int(number * len(some))])
    return found
