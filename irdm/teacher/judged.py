"""What the world's teacher draws, by the exact judge: six rates and their mean, at several numbers of steps."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from irdm.generators.klein_teacher import Teacher
from irdm.ops.sampling import generator_for
from irdm.progress import Say
from irdm.teacher.config import TeacherConfig
from irdm.world import CATEGORIES, SIDE, captions_of, correct
from irdm.world.language import LONGEST
from irdm.world.splits import Side

STEPS = (1, 4, 50)
AT_ONCE = 200


def judged_teacher(folder: Path, config: TeacherConfig, say: Say) -> dict[str, Any]:
    """{"judged": {side: {steps: {category: rate, "mean": ..., "ms": ... a picture}}}}, of the folder as it is."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for side in ("seen", "held-out"):
        found[side] = {}
        captions = _captions(side, config.judged, config.seed)
        for steps in STEPS:
            teacher = Teacher(folder, (3, SIDE, SIDE), length=LONGEST, steps=steps, precision="float32")
            right, began = [], time.process_time()
            for first in range(0, len(captions), AT_ONCE):
                some = captions[first : first + AT_ONCE]
                right.append(correct(teacher(some, range(first, first + len(some))), some).float())
            spent, verdicts = time.process_time() - began, torch.cat(right)
            rates = {name: verdicts[k :: len(CATEGORIES)].mean().item() for k, name in enumerate(CATEGORIES)}
            found[side][str(steps)] = {**rates, "mean": fmean(rates.values()), "ms": 1000 * spent / len(captions)}
            say(f"{side}, {steps} steps: {found[side][str(steps)]['mean']:.3f} of the pictures are right")
    return {"judged": found}


def _captions(side: Side, count: int, seed: int) -> list[str]:
    """The categories in turn, captions of each at random."""
    draw, found = generator_for("judged", seed, side), []
    texts = {name: [text for _, some in asks for text in some] for name, asks in captions_of(side).items()}
    for row, number in enumerate(torch.rand(count, generator=draw).tolist()):
        some = texts[CATEGORIES[row % len(CATEGORIES)]]
        found.append(some[int(number * len(some))])
    return found
