"""GenEval's verdicts as a scorer of renders (`irdm render`): of the pictures of a prompt, the correct ones stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from irdm.files import hash_of
from irdm.geneval.exact import ExactScorer, prompt_of
from irdm.geneval.prompts import Prompt, read_prompt
from irdm.geneval.verdicts import Judge


class Verdicts:
    """`scorer(pictures, texts) -> scores`: 1 for a picture that shows what its text asks for, else minus infinity."""

    def __init__(self, judge: Judge, asked: Mapping[str, Prompt]):
        """`asked`: what each text asks for."""
        self.judge, self.asked = judge, asked

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the verdicts, as plain JSON."""
        lines = {text: prompt.metadata for text, prompt in self.asked.items()}
        return {"kind": self.judge.kind, "judge": self.judge.identity, "asked": hash_of(lines)}

    def __call__(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """Raises ValueError for a picture that cannot be judged."""
        looks = [self.judge.look(image, self.asked[text]) for image, text in zip(pictures, texts, strict=True)]
        return [-math.inf if wrong else 1.0 for wrong, _ in looks]


def exact_verdicts(texts: Sequence[str]) -> Verdicts:
    """Of the captioned world, whose captions say themselves what they ask for. Raises ValueError for others."""
    return Verdicts(ExactScorer(), {text: prompt_of(text) for text in texts})


def detected_verdicts(file: Path, detector: Path | None, clip: Path | None, device: str) -> Verdicts:
    """By the scorer without mmdet, of a file of prompts with tags. Raises ValueError when something is missing."""
    from irdm.geneval.detector import TransformersScorer

    asked = read_asked(file)
    return Verdicts(TransformersScorer.load(detector, clip, device), asked)


def read_asked(file: Path) -> dict[str, Prompt]:
    """What each text of a file asks for, of any of the categories.

    Raises ValueError when a line has no tag, or one text is asked for in two ways.
    """
    asked: dict[str, Prompt] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            prompt = read_prompt(line, f"{file}, line {number}")
        except ValueError as error:
            raise ValueError(
                f"Verdicts need to know what a picture must show, which the tags of GenEval's format say, and texts "
                f"alone do not. {error}"
            ) from None
        if asked.setdefault(prompt.prompt.strip(), prompt) != prompt:
            raise ValueError(f"{file}, line {number} asks for something else than an earlier line of the same prompt.")
    return asked
