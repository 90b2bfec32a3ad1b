"""GenEval in the captioned world: its prompt file for shapes, and the exact judge as a scorer.

Nothing of it is learned: `irdm.world.judge` reads the pixels. A picture is correct when it shows what was asked for and
nothing else, which the lines of the file say too: `exclude` holds one more of every shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from irdm.files import hash_of, write_atomic
from irdm.geneval.prompts import PUBLISHED, Prompt
from irdm.geneval.verdicts import Judge
from irdm.world.captions import read
from irdm.world.judge import FAR, LEFT, QUIET, UNCLEAR, read_scenes, shows
from irdm.world.scene import COLOURS, EMPTY, SHAPES, SIZES, named
from irdm.world.splits import Side, captions_of


def world_prompts(side: Side) -> list[Prompt]:
    """Captions of a side, as many of a category as GenEval has or as there are, evenly spaced."""
    found = []
    for tag, asks in captions_of(side).items():
        texts = [text for _, some in asks for text in some]
        most = min(PUBLISHED[tag], len(texts))
        found += [prompt_of(texts[len(texts) * row // most]) for row in range(most)]
    return found


def write_world_prompts(path: Path, side: Side) -> int:
    """Write them as GenEval's file has its own, a line each; returns how many there are."""
    prompts = world_prompts(side)
    write_atomic(path, "".join(f"{json.dumps(prompt.metadata)}\n" for prompt in prompts))
    return len(prompts)


def prompt_of(caption: str) -> Prompt:
    """A caption of the world as a line of the file. Raises ValueError for a caption that the world cannot read."""
    ask = read(caption)
    clauses: list[dict[str, Any]] = []
    for part in ask.parts[::-1]:  # GenEval names the object that another is beside first
        clauses.append({"class": part.shape, "count": part.many, **({"color": part.colour} if part.colour else {})})
    if ask.relation:
        clauses[-1]["position"] = [ask.relation, 0]
    asked = {shape: sum(part.many for part in ask.parts if part.shape == shape) for shape in SHAPES}
    exclude = [{"class": shape, "count": count + 1} for shape, count in asked.items()]
    return Prompt.model_validate({"tag": ask.category, "include": clauses, "exclude": exclude, "prompt": caption})


class ExactScorer(Judge):
    """Reads every picture, and compares it with what its prompt asks for."""

    kind = "exact"
    metric = "exact judge of the captioned world, reported as GenEval is"

    def __init__(self):
        self.identity = {"rules": hash_of([SHAPES, COLOURS, SIZES, QUIET, LEFT, FAR])}

    def look(self, image: Image.Image, prompt: Prompt) -> tuple[str, dict[str, list[str]]]:
        """What is in each cell, which is the fault when it is something else than was asked for."""
        if prompt_of(prompt.prompt) != prompt:
            raise ValueError(
                f"The prompt '{prompt.prompt}' asks for something else than its line says; give a file of "
                "`irdm geneval prompts`."
            )
        levels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None] / 255
        cells: list[int] = read_scenes(levels)[0].tolist()
        seen = ["nothing" if cell == EMPTY else "unclear" if cell == UNCLEAR else _said(cell) for cell in cells]
        return "" if shows(cells, read(prompt.prompt)) else f"shows {', '.join(seen)}", {"cells": seen}


def _said(cell: int) -> str:
    shape, colour = named(cell)
    return f"a {colour} {shape}"
