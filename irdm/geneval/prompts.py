"""GenEval's prompt file, which is the user's: one JSON object a line, each a prompt and what its image must show.

    {"tag": "position", "include": [{"class": "bench", "count": 1},
     {"class": "cow", "count": 1, "position": ["left of", 0]}], "prompt": "a photo of a cow left of a bench"}

Source: Ghosh et al., 2023, arXiv 2310.11513.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from irdm.config import Config
from irdm.fields import nearest, plain
from irdm.world.scene import SHAPES

PUBLISHED = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
"""The six categories, and how many prompts of each the published file has."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes of COCO in the order of its detectors, three of them under GenEval's own names."""

Relation = Literal["left of", "right of", "above", "below"]


class Exclusion(Config):
    """So many objects of a class, or more, must not be seen."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    name: str = Field(alias="class")
    """Class of the objects."""
    count: Annotated[int, Field(ge=1, strict=True)]
    """How many are too many."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in OBJECTS and name not in SHAPES:  # the second are those of the captioned world
            raise ValueError(f"is '{name}', which no detector of COCO knows{nearest(name, OBJECTS)}")
        return name


class Clause(Exclusion):
    """Objects of a class that must be seen, perhaps in a colour, perhaps beside the objects of an earlier clause."""

    color: Literal[COLOURS] | None = None  # pyright: ignore[reportInvalidTypeForm]
    """Colour of all of them."""
    position: tuple[Relation, Annotated[int, Field(ge=0, strict=True)]] | None = None
    """Where they are, seen from the objects of the clause of this number."""


class Prompt(Config):
    """One line of the file."""

    tag: Literal[tuple(PUBLISHED)]  # pyright: ignore[reportInvalidTypeForm]
    """Category."""
    include: Annotated[tuple[Clause, ...], MinLen(1)]
    """All of these must hold."""
    exclude: tuple[Exclusion, ...] = ()
    """None of these may hold."""
    prompt: Annotated[str, Field(pattern=r"\S")]
    """The text."""

    @model_validator(mode="after")
    def _earlier(self) -> Prompt:
        for number, clause in enumerate(self.include):
            if clause.position and clause.position[1] >= number:
                raise ValueError(
                    f"clause {number} stands {clause.position[0]} clause {clause.position[1]}, which is not before it"
                )
        return self

    @property
    def metadata(self) -> dict[str, Any]:
        """The line as it was read: what the official scorer is given."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file in their order, and the file's sha256."""

    path: Path
    sha256: str
    prompts: tuple[Prompt, ...]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Prompts of each category."""
        found = Counter(prompt.tag for prompt in self.prompts)
        return {tag: found[tag] for tag in PUBLISHED}

    @property
    def is_published(self) -> bool:
        """Whether there are as many prompts of each category as in the published file."""
        return self.counts == PUBLISHED

    def __str__(self) -> str:
        """For people."""
        other = "" if self.is_published else f", not the published {sum(PUBLISHED.values())}"
        return f"{len(self.prompts)} prompts{other} ({self.path}, sha256 {self.sha256[:12]})"


def read_prompts(path: Path) -> PromptFile:
    """The user's prompt file.

    Raises ValueError naming the line that is no prompt of GenEval's, or the categories of which there is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}). GenEval's prompts are not part of irdm: give the "
            "evaluation_metadata.jsonl of its authors' repository (djghosh13/geneval)."
        ) from None
    prompts = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        if line.strip():
            prompts.append(read_prompt(line, f"{path}, line {number}"))
    found = PromptFile(path, hashlib.sha256(data).hexdigest(), tuple(prompts))
    if missing := [tag for tag, count in found.counts.items() if not count]:
        raise ValueError(
            f"{path} has {len(prompts)} prompts and none of {', '.join(missing)}. GenEval's score is the mean of six "
            "categories: give a file that has all of them."
        )
    return found


def read_prompt(text: str, where: str) -> Prompt:
    """A prompt from its JSON. Raises ValueError, saying `where`, for anything else."""
    try:
        return Prompt.model_validate(json.loads(text))
    except ValidationError as error:
        wrong = plain(error)
    except (ValueError, RecursionError) as error:
        wrong = f"it is no JSON ({error})"
    raise ValueError(f"{where} is no prompt of GenEval: {wrong}. Expected such as {EXAMPLE}")


EXAMPLE = '{"tag": "counting", "include": [{"class": "bus", "count": 2}], "prompt": "a photo of two buses"}'
