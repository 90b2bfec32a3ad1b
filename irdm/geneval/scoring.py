"""A rendered folder -> verdicts -> geneval.json; and golden sets, on which a scorer proves itself first.

DIR/scored-<scorer>/verdicts.jsonl   what the scorer wrote
DIR/scored-<scorer>/geneval.json     rates, intervals, and everything that decided them
DIR/golden-<scorer>.json             of a golden set: its images' hashes and the verdicts that a scorer must repeat
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from irdm.files import read_manifest, sha256_of, write_manifest
from irdm.geneval.layout import NAMED, RECORD, Sample, rendered
from irdm.geneval.prompts import PromptFile
from irdm.geneval.summary import RESULT, Judged, Scored, rates, write_scored
from irdm.geneval.verdicts import Scorer, read_verdicts
from irdm.metrics.base import MIN_ROWS
from irdm.metrics.pickscore import PickScore
from irdm.progress import Say, silent

AGREEMENT = 0.98
"""Share of a golden set's verdicts that another build must repeat."""


class Agreement(NamedTuple):
    """What a scorer says of a golden set: how many verdicts are those recorded, and the images where they are not."""

    images: int
    differing: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of verdicts that are repeated."""
        return 1 - len(self.differing) / self.images


def score_folder(
    folder: Path,
    prompts: PromptFile,
    scorer: Scorer,
    *,
    floor: float,
    golden: Path | None = None,
    agreement: float = AGREEMENT,
    pickscore: PickScore | str = "not asked for",
    micro_batch: int = 16,
    progress: Say = silent,
) -> tuple[Scored, Path]:
    """The verdicts of a scorer on a whole folder, summarised and written; returns the summary and where it is.

    Args:
        folder: what `render` wrote, or anybody's in the same layout.
        prompts: the file that it was rendered from.
        scorer: who looks.
        floor: the share of single objects below which the scorer is not believed.
        golden: a folder with a golden set, on which it is tried first.
        agreement: the share of its verdicts that must be repeated.
        pickscore: the other judge, or why there is none.
        micro_batch: images that it looks at at once.
        progress: receives a line of text now and then.

    Raises ValueError when the folder is half rendered or of other prompts, when the golden set fails, and when the
    scorer's file cannot be believed (`read_verdicts`).
    """
    samples = rendered(folder, prompts)
    if isinstance(pickscore, PickScore) and len(prompts.prompts) < MIN_ROWS:
        raise ValueError(f"{prompts} are too few for a PickScore, expected at least {MIN_ROWS}; leave --pickscore out.")
    tried = None if golden is None else _tried(golden, scorer, agreement, progress)
    out = folder / f"scored-{scorer.kind}"
    out.mkdir(exist_ok=True)
    (out / RESULT).unlink(missing_ok=True)  # of earlier verdicts
    scorer(folder, samples, out / "verdicts.jsonl", progress)
    verdicts = read_verdicts(out / "verdicts.jsonl", samples, floor)
    images = [
        Judged(file=sample.name, number=sample.number, tag=sample.prompt.tag, correct=correct)
        for sample, correct in zip(samples, verdicts, strict=True)
    ]
    found, overall = rates(images)
    liked = None
    if isinstance(pickscore, PickScore):
        scores = pickscore.scores(_opened(samples), [sample.prompt.prompt for sample in samples], micro_batch)
        images = [
            image.model_copy(update={"pickscore": score})
            for image, score in zip(images, scores.tolist(), strict=True)
        ]  # fmt: skip
        liked = pickscore.summary(_by_prompt(images))["pickscore"].mean
    render = folder / RECORD
    scored = Scored(
        metric=scorer.metric,
        kind=scorer.kind,
        scorer=dict(scorer.identity),
        prompts=prompts.sha256,
        published=prompts.is_published,
        render=read_manifest(render, "Delete it: the images do not need it.") if render.exists() else {},
        rates=found,
        overall=overall,
        pickscore=liked,
        pickscore_missing=None if isinstance(pickscore, PickScore) else pickscore,
        golden=tried,
        images=tuple(images),
    )
    return scored, write_scored(out, scored)


def record_golden(folder: Path, scorer: Scorer, progress: Say = silent) -> Path:
    """Make a folder a golden set: write down its images' hashes and this scorer's verdicts; returns where.

    Raises ValueError when it is one already.
    """
    path = _golden_path(folder, scorer)
    if path.exists():
        raise ValueError(f"{path} is there: the set has its verdicts. Delete it to record others.")
    samples = rendered(folder, None)
    verdicts = _verdicts(folder, samples, scorer, progress)
    images = {
        sample.name: {"sha256": sha256_of(sample.path), "correct": correct}
        for sample, correct in zip(samples, verdicts, strict=True)
    }
    write_manifest(path, {"kind": scorer.kind, "scorer": dict(scorer.identity), "images": images})
    return path


def try_golden(folder: Path, scorer: Scorer, progress: Say = silent) -> Agreement:
    """What this scorer says of a golden set, image by image, beside what was recorded.

    Raises ValueError when there is none of this kind of scorer, or its images are other ones.
    """
    path = _golden_path(folder, scorer)
    try:
        recorded: Mapping[str, Any] = read_manifest(path, "Record the golden set again.")["images"]
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not there: record the set with a scorer that you trust, by `irdm geneval golden {folder} "
            f"--record --scorer {scorer.kind} ...`."
        ) from None
    samples = rendered(folder, None)
    there = {sample.name: sha256_of(sample.path) for sample in samples}
    if odd := sorted(
        name for name in {**there, **recorded} if there.get(name) != recorded.get(name, {}).get("sha256")
    ):  # fmt: skip
        raise ValueError(
            f"{folder} does not hold the images that {path.name} is of: {', '.join(odd[:NAMED])} "
            f"{'are' if len(odd) > 1 else 'is'} missing, new or altered. Bring back the golden set."
        )
    verdicts = _verdicts(folder, samples, scorer, progress)
    differing = [
        sample.name for sample, correct in zip(samples, verdicts, strict=True)
        if correct != recorded[sample.name]["correct"]
    ]  # fmt: skip
    return Agreement(len(samples), tuple(differing))


def check_agreement(found: Agreement, least: float, folder: Path) -> None:
    """Raises ValueError when a scorer repeats fewer verdicts of a golden set than it must."""
    if found.share < least:
        named = ", ".join(found.differing[:NAMED]) + (", ..." if len(found.differing) > NAMED else "")
        raise ValueError(
            f"The scorer fails on the golden set {folder}: {found.share:.1%} of {found.images} verdicts are those that "
            f"were recorded, expected {least:.1%}; others on {named}. It is another build, or its weights are others."
        )


def _tried(folder: Path, scorer: Scorer, least: float, progress: Say) -> dict[str, Any]:
    found = try_golden(folder, scorer, progress)
    check_agreement(found, least, folder)
    progress(f"golden set {folder}: {found.share:.1%} of {found.images} verdicts are those that were recorded")
    return {"sha256": sha256_of(_golden_path(folder, scorer)), "images": found.images, "agreement": found.share}


def _golden_path(folder: Path, scorer: Scorer) -> Path:
    return folder / f"golden-{scorer.kind}.json"


def _verdicts(folder: Path, samples: Sequence[Sample], scorer: Scorer, progress: Say) -> list[bool]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "verdicts.jsonl"
        scorer(folder, samples, path, progress)
        return read_verdicts(path, samples)


def _opened(samples: Sequence[Sample]):
    for sample in samples:
        with Image.open(sample.path) as image:
            yield image.convert("RGB")


def _by_prompt(images: Sequence[Judged]) -> torch.Tensor:
    """Mean PickScore of each prompt."""
    scores: dict[int, list[float]] = {}
    for image in images:
        assert image.pickscore is not None
        scores.setdefault(image.number, []).append(image.pickscore)
    return torch.tensor([sum(some) / len(some) for some in scores.values()], dtype=torch.float64)
