"""Six rates and their mean, with intervals, and what a scored folder says of itself: geneval.json.

Letters: n images, p prompts of a category, k resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from pydantic import ValidationError
from torch import Tensor

from irdm.config import Config
from irdm.fields import plain
from irdm.files import read_manifest, write_manifest
from irdm.geneval.prompts import PUBLISHED
from irdm.metrics.score import Estimate
from irdm.ops.sampling import generator_for

RESULT, RESAMPLES = "geneval.json", 2000


class Rate(Config):
    """A share of images that are correct, and its 95% interval."""

    value: float
    """The rate."""
    ci95: tuple[float, float]
    """By bootstrap over prompts."""
    prompts: int
    """How many it is of."""


class Judged(Config):
    """One image: where it lies in the folder, its category, its verdict, and its PickScore where there is one."""

    file: str
    """Such as 00000/samples/0000.png."""
    number: int
    """Of its prompt."""
    tag: str
    """Category."""
    correct: bool
    """The verdict."""
    pickscore: float | None = None
    """How much people like it for its prompt, as a model says."""


class Scored(Config):
    """What a scorer says of a folder."""

    metric: str
    """What the score is called: that of another scorer is another metric."""
    kind: str
    """official or transformers."""
    scorer: dict[str, Any]
    """What decides the verdicts: hashes and versions."""
    prompts: str
    """sha256 of the prompt file."""
    published: bool
    """Whether there are as many prompts of each category as GenEval has."""
    render: dict[str, Any]
    """How the images were drawn, as render.json says; empty for images of others."""
    rates: dict[str, Rate]
    """By category."""
    overall: Rate
    """Their unweighted mean."""
    pickscore: Estimate | None = None
    """Mean PickScore of the same images; None: see `pickscore_missing`."""
    pickscore_missing: str | None = None
    """Why there is none."""
    golden: dict[str, Any] | None = None
    """Which golden set the scorer was tried on before, and what it agreed in."""
    images: tuple[Judged, ...]
    """All of them, in the order of the folder."""


def rates(images: Sequence[Judged], seed: int = 0) -> tuple[dict[str, Rate], Rate]:
    """The rate of each category, and their unweighted mean.

    Raises ValueError when a category is missing.
    """
    means = {tag: by_prompt(images, tag) for tag in PUBLISHED}
    if missing := [tag for tag, found in means.items() if not len(found)]:
        raise ValueError(f"There is no image of {', '.join(missing)}; GenEval's score is the mean of six categories.")
    draws = resampled(means, seed)
    found = {tag: _rate(means[tag].mean().item(), draws[tag], len(means[tag])) for tag in PUBLISHED}
    value = sum(rate.value for rate in found.values()) / len(found)
    together = torch.stack([*draws.values()]).mean(0)
    return found, _rate(value, together, sum(map(len, means.values())))


def by_prompt(images: Sequence[Judged], tag: str) -> Float64[Tensor, " p"]:
    """The share of correct images of each prompt of a category, in the order of the prompts."""
    verdicts: dict[int, list[float]] = {}
    for image in images:
        if image.tag == tag:
            verdicts.setdefault(image.number, []).append(float(image.correct))
    return torch.tensor([sum(some) / len(some) for _, some in sorted(verdicts.items())], dtype=torch.float64)


def resampled(groups: Mapping[str, Float64[Tensor, " p"]], seed: int) -> dict[str, Float64[Tensor, " k"]]:
    """Bootstrap means of each group of prompts: its size is part of the benchmark, so each is drawn from on its own."""
    generator = generator_for("geneval", "bootstrap", seed)
    return {
        name: values[torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)].mean(1)
        for name, values in groups.items()
    }


def percentiles(draws: Float64[Tensor, " k"]) -> tuple[float, float]:
    """The 95% percentile interval of bootstrap draws."""
    low, high = torch.quantile(draws, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _rate(value: float, draws: Float64[Tensor, " k"], prompts: int) -> Rate:
    return Rate(value=value, ci95=percentiles(draws), prompts=prompts)


def table(scored: Scored) -> list[str]:
    """The lines that `irdm geneval score` prints: both judges, always, since what is trained by one games it first."""
    width = max(len(tag) for tag in PUBLISHED)
    lines = [scored.metric + ("" if scored.published else " (not on the published prompts)")]
    for name, rate in {**scored.rates, "overall": scored.overall}.items():
        low, high = rate.ci95
        lines.append(f"  {name:{width}}  {rate.value:6.3f}  95% {low:.3f} to {high:.3f}  {rate.prompts} prompts")
    lines.append("PickScore of the same images")
    if scored.pickscore is None:
        lines.append(f"  not measured: {scored.pickscore_missing}")
    else:
        low, high = scored.pickscore.ci95 or (scored.pickscore.value,) * 2
        lines.append(f"  {'mean':{width}}  {scored.pickscore.value:6.2f}  95% {low:.2f} to {high:.2f}")
    return lines


def write_scored(folder: Path, scored: Scored) -> Path:
    """Write geneval.json; returns where."""
    write_manifest(folder / RESULT, scored.model_dump(mode="json"))
    return folder / RESULT


def is_scored(path: Path) -> bool:
    """Whether a path is a geneval.json, or a folder with one."""
    return path.name == RESULT or (path / RESULT).is_file()


def read_scored(path: Path) -> Scored:
    """geneval.json, or that of the folder it lies in. Raises ValueError when it is missing or damaged."""
    path = path / RESULT if path.is_dir() else path
    try:
        return Scored.model_validate(read_manifest(path, "Score the folder again with `irdm geneval score`."))
    except FileNotFoundError:
        raise ValueError(f"There is no {path}; score the folder with `irdm geneval score`.") from None
    except ValidationError as error:
        raise ValueError(f"{path} is not of this irdm: {plain(error)}. Score the folder again.") from None
