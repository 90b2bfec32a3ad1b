"""The file of verdicts, as the official scorer writes it: a JSON object an image, with the prompt and what was found.

A scorer that fails may still write a file: short, empty, or of hardly any object. So no file is believed before it has
one verdict for each image of the folder, of the right category, and finds single objects.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image, ImageOps

from irdm.files import write_atomic
from irdm.geneval.layout import NAMED, Sample
from irdm.geneval.prompts import Prompt
from irdm.progress import Meter, Say, silent

EASY = "single_object"


@runtime_checkable
class Scorer(Protocol):
    """What looks at images and writes verdicts."""

    kind: str
    """official or transformers."""
    metric: str
    """What its score is called."""
    identity: dict[str, Any]
    """What decides its verdicts: hashes and versions, as plain JSON."""

    def __call__(self, folder: Path, samples: Sequence[Sample], out: Path, progress: Say = ...) -> None:
        """Write a verdict for each image of a folder to `out`. Raises ValueError when it cannot."""
        ...


class Judge(ABC):
    """A scorer that is no other process: it looks at one picture after another, of a folder or not."""

    kind: str
    metric: str
    identity: dict[str, Any]

    @abstractmethod
    def look(self, image: Image.Image, prompt: Prompt) -> tuple[str, Any]:
        """What a picture does not show of its prompt, in words, empty when it is correct; and what was seen, as JSON.

        Raises ValueError for pictures or prompts that it cannot judge.
        """

    def __call__(self, folder: Path, samples: Sequence[Sample], out: Path, progress: Say = silent) -> None:
        """Write a verdict an image to `out`. Raises ValueError naming an image that cannot be judged."""
        tick = Meter(f"scorer {self.kind}", len(samples), "images", progress)
        lines = []
        for sample in samples:
            lines.append(self.verdict(sample))
            tick()
        write_verdicts(out, lines)

    def verdict(self, sample: Sample) -> dict[str, Any]:
        """Of one image, as the official scorer writes it."""
        prompt = sample.prompt
        with Image.open(sample.path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
        try:
            wrong, seen = self.look(image, prompt)
        except ValueError as error:
            raise ValueError(f"{sample.path}: {error}") from None
        return {
            "filename": str(sample.path), "tag": prompt.tag, "prompt": prompt.prompt, "correct": not wrong,
            "reason": wrong, "metadata": prompt.metadata, "details": seen,
        }  # fmt: skip


def write_verdicts(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write verdicts; their `metadata` and `details` become texts, as the official ones are."""
    texts = (
        json.dumps({key: json.dumps(value) if key in ("metadata", "details") else value for key, value in line.items()})
        for line in lines
    )
    write_atomic(path, "".join(f"{text}\n" for text in texts))


def read_verdicts(path: Path, samples: Sequence[Sample], floor: float | None = None) -> list[bool]:
    """Whether each image of a folder, in their order, is correct.

    Args:
        path: what a scorer wrote, in any order.
        samples: the images.
        floor: the share of single objects that must be found; None asks nothing.

    Raises ValueError for a file that is missing, empty, short, or of other images, for a verdict whose category is not
    that of its prompt, and for fewer single objects than `floor`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise ValueError(f"{path} is missing: the scorer wrote nothing. Its own messages say why.") from None
    places = {sample.name: row for row, sample in enumerate(samples)}
    found: dict[int, bool] = {}
    for number, line in enumerate(filter(str.strip, lines), start=1):
        try:
            verdict = json.loads(line)
            name, tag, correct = "/".join(Path(verdict["filename"]).parts[-3:]), verdict["tag"], verdict["correct"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is no verdict ({error!r}); expected filename, tag and correct. Score again."
            ) from None
        row = places.get(name)
        if row is None or row in found or not isinstance(correct, bool):
            what = "correct is not true or false" if row is not None and row not in found else (
                "it is of an image that is not in the folder" if row is None else "the image has two"
            )  # fmt: skip
            raise ValueError(f"{path}, line {number}: the verdict on {name} cannot be used, {what}. Score again.")
        if tag != samples[row].prompt.tag:
            raise ValueError(
                f"{path}, line {number}: {name} has the tag '{tag}', but its prompt is of '{samples[row].prompt.tag}'."
            )
        found[row] = correct
    if left := [sample.name for row, sample in enumerate(samples) if row not in found]:
        named = ", ".join(left[:NAMED]) + (", ..." if len(left) > NAMED else "")
        raise ValueError(
            f"{path} has {len(found)} verdicts for {len(samples)} images: {named} without one. The scorer stopped "
            "early, or saw no image; its own messages say why."
        )
    verdicts = [found[row] for row in range(len(samples))]
    easy = [correct for correct, sample in zip(verdicts, samples, strict=True) if sample.prompt.tag == EASY]
    if floor is not None and easy and (rate := sum(easy) / len(easy)) < floor:
        raise ValueError(
            f"The scorer finds {rate:.1%} of single objects, fewer than the {floor:.1%} of --floor. Weights that do "
            "not fit their configuration look like this: check both. If the images are as poor as that, lower --floor."
        )
    return verdicts
