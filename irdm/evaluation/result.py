"""What an evaluation leaves behind: scores, beside everything that decided them, as one checked JSON file."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from pydantic import ValidationError

from irdm import __version__
from irdm.config import Config
from irdm.evaluation.judging import judge
from irdm.evaluation.overlap import overlap
from irdm.evaluation.sensitivity import Sensitivity
from irdm.evaluation.verdict import Verdict, verdict_of
from irdm.files import read_manifest, write_manifest
from irdm.metrics.base import EvaluationConfig, Pools
from irdm.metrics.score import Score
from irdm.metrics.tables import Real, Table

RESULT = "result.json"
CONTROL_MARGIN = 0.15  # a real control further from 1 than this is pointed out


class Result(Config):
    """The scores of one set of images."""

    kind: Literal["evaluation"] = "evaluation"
    source: dict[str, Any]
    """The judged images: path, images, fingerprint."""
    reference: dict[str, Any]
    """What they were compared with, for people: name, train and val (numbers of images), size."""
    protocol: dict[str, Any]
    """Everything that decides a score but the judged images. Results of one protocol can be compared."""
    warnings: tuple[str, ...] = ()
    """What a reader must know beside the numbers."""
    verdict: Verdict | None = None
    """What is to be said first. None where there are no scores of encoders."""
    ladder: Sensitivity | None = None
    """What the scores see here: the defects of real images. None where it was not measured."""
    scores: dict[str, Score]
    missing: tuple[str, ...] = ()
    """Encoders of the reference that were not used; labels then say "(partial)"."""
    seconds: dict[str, float] = {}
    versions: dict[str, str] = {}
    hardware: str | None = None
    seeds: dict[str, int | None] = {}
    command: str | None = None
    step: int | None = None
    """Of a run."""
    training: dict[str, Any] | None = None
    """What a run says of its training."""


def evaluate_tables(
    generated: Table,
    real: Real,
    config: EvaluationConfig,
    *,
    source: Mapping[str, Any],
    reference: Mapping[str, Any],
    missing: Sequence[str] = (),
    warned: Sequence[str] = (),
    scores: Mapping[str, Score] | None = None,
    more: Mapping[str, Score] | None = None,
    prompts: Sequence[str] | None = None,
    ladder: Sensitivity | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[str], None] | None = None,
    **about: Any,
) -> Result:
    """Judge a table and say what decided the scores.

    Args:
        generated: features of the judged images.
        real: the real side, under the same encoders.
        config: how to judge.
        source: as in Result.
        reference: as in Result.
        missing: encoders that the reference has and that were not used.
        warned: warnings to begin with.
        scores: what `judge` gave, where ranks divided it; None judges now.
        more: scores of other origin, such as PickScore.
        prompts: behind those.
        ladder: of the real side; None: not measured.
        device: where to compute; None is where the judged features are.
        progress: receives a line of text now and then.
        about: further fields of the result.

    Raises ValueError as `judge` and `irdm.evaluation.overlap` do.
    """
    repeated = overlap(generated, real)
    judged = judge(generated, real, config, device=device, progress=progress) if scores is None else scores
    scores = {**judged, **(more or {})}
    if missing:
        scores = {
            name: score.model_copy(update={"label": f"{score.label} (partial)"}) if score.encoders else score
            for name, score in scores.items()
        }
    ladder = None if ladder is None else ladder.only(real.encoders)
    verdict = verdict_of(scores, ladder, trained=about.get("step") is not None, held_out=real.held_out)
    if repeated.in_val:
        verdict = verdict.model_copy(update={"sentence": f"{repeated.says()[0]} {verdict.sentence}"})
    return Result(
        verdict=verdict,
        ladder=ladder,
        source={**source, "in_train": repeated.in_train, "in_val": repeated.in_val},
        reference=dict(reference),
        protocol=protocol(generated, real, config, prompts),
        warnings=(*warned, *repeated.says(), *warnings(generated, real, config, scores, missing)),
        scores=scores,
        missing=tuple(missing),
        versions=versions(),
        **about,
    )


def protocol(
    generated: Table, real: Real, config: EvaluationConfig, prompts: Sequence[str] | None = None
) -> dict[str, Any]:
    """What two results must share to be compared: all that decides a score but the images, as plain JSON."""
    settings = config.identity()
    for elsewhere in ("table_rows", "draws"):  # in the identity of the real side, and in the number of images
        settings.pop(elsewhere, None)
    identity: dict[str, Any] = dict(real.identity)
    if "encoders" in identity:  # a reference may have more than were used
        identity["encoders"] = {name: identity["encoders"][name] for name in real.encoders}
        identity["held_out"] = list(real.held_out)
    return {
        "real": identity,
        "settings": settings,
        "images": len(generated),
        "law": Pools.of(generated, real).law,
        "prompts": prompts and hashlib.sha256("\n".join(prompts).encode(errors="surrogateescape")).hexdigest(),
    }


def warnings(
    generated: Table, real: Real, config: EvaluationConfig, scores: Mapping[str, Score], missing: Sequence[str]
) -> list[str]:
    """What a reader must know beside the numbers."""
    found, used = [], len(real.encoders)
    if missing:
        found.append(
            f"Partial: {used} of the reference's {used + len(missing)} encoders were asked for, without "
            f"{', '.join(missing)}. No mean here compares with one over all of them."
        )
    pools = Pools.of(generated, real)
    full = min(config.rows, len(pools.train), len(pools.val) // 2)
    if len(generated) < full:
        found.append(
            f"{len(generated)} images: the ratios compare that many with as many fresh real ones instead of {full}: "
            "the intervals are wider, and small differences are not seen."
        )
    ratio = scores.get("sw_ratio")
    if ratio and ratio.mean and ratio.mean.control is not None and abs(ratio.mean.control - 1) > CONTROL_MARGIN:
        found.append(
            f"Fresh real images themselves score {ratio.mean.control:.2f} here: with {len(real.val)} held-out images "
            "the unit of the ratios is that uncertain. Compare scores against this reference with each other, or hold "
            "out more images."
        )
    there = max(moments.count for moments in real.moments.values())
    if len(real.train) < there:
        found.append(
            f"Closeness, authenticity and near copies compare with {len(real.train)} random train images of {there}: "
            "a copy of one of the others is not seen."
        )
    distances = scores["frechet_distance"].encoders.items() if "frechet_distance" in scores else ()
    if singular := [name for name, estimate in distances if estimate.notes.get("warning")]:
        found.append(
            f"Frechet distances of {', '.join(singular)}: there are fewer images than dimensions on one side, so they "
            "are biased upwards; compare them at equal numbers of images only."
        )
    if generated.conditions.strata is not None and pools.law == "random":
        found.append(
            "The judged images do not have the classes of train in its proportions, so all rows were drawn without "
            "regard to classes: a wrong share of a class counts against the images."
        )
    return found


def versions() -> dict[str, str]:
    """Of what computed a result."""
    return {
        "irdm": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def write_result(path: Path, result: Result) -> None:
    """Write a result with a checksum of itself."""
    write_manifest(path, result.model_dump(mode="json"))


def read_result(path: Path) -> Result:
    """The result in a file, or in the directory it lies in.

    Raises ValueError naming the file when there is none, or it is damaged, altered or of another version.
    """
    file = path / RESULT if path.is_dir() else path
    again = "Repeat the `irdm eval` or `irdm train` that wrote it."
    try:
        return Result.model_validate(read_manifest(file, again))
    except FileNotFoundError:
        raise ValueError(f"There is no {file}; give a {RESULT} or its directory, from `irdm eval`.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{file} is no result of this irdm ({where}: {first['msg']}). {again}") from None
