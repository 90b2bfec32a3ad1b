"""How far each defect of the ladder is from real, to every encoder and every witness: what scores can see, what not.

What is judged are n images of val, damaged; the real side is train and the rest of val. No image is on both sides:
judged images that are also in the denominator or in the control of a ratio would be nearer to it than fresh ones are.

A distance depends on the number of images, but what a defect adds to its square does not, to first order:

    E SW^2(n judged, train) = D^2 + E SW^2(n fresh, train),        D^2 = (r^2 - 1) SW^2(n fresh, train)

for a ratio r. So a set of any size is placed on the ladder by its D^2 under each encoder. From that of a rung is taken
that of its images before they were damaged, which is chance.

Letters: n images, e encoders, l levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import nn

from irdm.conditions import draw, proportioned
from irdm.config import Config
from irdm.data.base import Dataset, Split
from irdm.evaluation.defects import DEFECTS, Damaged
from irdm.evaluation.embedding import embed
from irdm.evaluation.judging import judge
from irdm.evaluation.witnesses import ALPHA, SHARES, witnesses
from irdm.files import hash_of, read_manifest, write_manifest
from irdm.metrics.base import EvaluationConfig
from irdm.metrics.intervals import chance as chance_of
from irdm.metrics.ratio import FREEDOM
from irdm.metrics.score import Score
from irdm.metrics.sliced_wasserstein import WhitenedDistance
from irdm.metrics.tables import Real, Table, row_order
from irdm.progress import Meter, Say

LADDER = "ladder.json"
"""The file that keeps one."""

CODE_VERSION = 3
"""Part of the identity: raise it when the ladder, or how it is measured, changes."""

FEWEST = 50
"""Images of a rung below which there is no ladder: it would be blind to everything."""

DISTANCE = "whitened_ratio"
"""The score whose encoders place a set on the ladder."""

ASKED = ("whitened_ratio", "manifold", "bins", "class_shares", "memorisation", "duplicates")
"""The metrics that witnesses ask: a rung is judged by these."""

DIRECTIONS, RESAMPLES = 256, 32  # of a rung: the ladder judges some thirty sets


class Cost(Config):
    """What a defect does to a score."""

    value: float
    p: float | None = None
    """`Estimate.p_real`: how often fresh real images score as badly."""


class Rung(Config):
    """A defect at a level."""

    defect: str
    level: float
    says: str
    """In words."""
    excess: dict[str, float]
    """D^2 by encoder."""
    scores: dict[str, dict[str, Cost]]
    """By score, then by encoder and by mean, held_in and held_out. Of a level that need not be seen, the distance."""
    seen: tuple[str, ...] | None
    """The witnesses that object; the distance is asked first. None where not all encoders of the ladder are used."""

    @property
    def stated(self) -> bool:
        """Whether it is the level that a panel must see."""
        return self.level == DEFECTS[self.defect].stated


class Sensitivity(Config):
    """The ladder of one real side."""

    of: str
    """Identity of the real side, the ladder and the number of images."""
    rows: int
    """Images of a rung."""
    held_out: tuple[str, ...]
    real: dict[str, float]
    """Distance of as many fresh real images to train, by encoder."""
    spread: dict[str, float]
    """Standard deviation of its logarithm from draw to draw."""
    rungs: tuple[Rung, ...]

    def ratios(self, excess: Mapping[str, float]) -> dict[str, float]:
        """What as many images as a rung has, so far from real, score over fresh ones, by encoder."""
        return {
            name: math.sqrt(1 + max(excess[name], 0.0) / real**2) for name, real in self.real.items() if name in excess
        }

    def mean(self, excess: Mapping[str, float], group: str = "mean") -> float | None:
        """The mean of `ratios` over the encoders of a group: held_out, held_in, or all. None where it has none."""
        out = {"held_out": True, "held_in": False}.get(group)
        found = [v for name, v in self.ratios(excess).items() if out is None or (name in self.held_out) == out]
        return sum(found) / len(found) if found else None

    def blind(self, encoder: str | None = None) -> tuple[str, ...]:
        """The defects that are not seen, in words, at the level that a panel must see.

        By no witness; or, of one encoder, those not further from real than ALPHA of fresh real images are.
        """
        return tuple(rung.says for rung in self.rungs if rung.stated and not sees(rung, encoder))

    def only(self, names: tuple[str, ...]) -> Sensitivity:
        """The same under some of its encoders."""
        if set(names) >= set(self.real):
            return self

        def kept(table: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in table.items() if name in names}

        rungs = (
            rung.model_copy(
                update={
                    "excess": kept(rung.excess),
                    "scores": {score: kept(costs) for score, costs in rung.scores.items()},
                    "seen": None,
                }
            )
            for rung in self.rungs
        )
        held_out = tuple(name for name in self.held_out if name in names)
        sizes = {"real": kept(self.real), "spread": kept(self.spread)}
        return self.model_copy(update={**sizes, "held_out": held_out, "rungs": tuple(rungs)})


def sees(rung: Rung, encoder: str | None) -> bool:
    """Whether a rung is seen: by some witness, or under one encoder."""
    if encoder is None:
        return rung.seen is None or bool(rung.seen)
    p = rung.scores[DISTANCE][encoder].p
    return p is None or p <= ALPHA


def excess(score: Score) -> dict[str, float]:
    """D^2 of a set of images by encoder, from its ratio."""
    return {
        name: (part.value**2 - 1) * part.notes["real_distance"] ** 2
        for name, part in score.encoders.items()
        if "real_distance" in part.notes
    }


class _Stage(NamedTuple):
    """What a ladder is measured on."""

    judged: Split
    train: Split
    real: Real


def measure(
    dataset: Dataset,
    encoders: Mapping[str, nn.Module],
    real: Real,
    config: EvaluationConfig,
    *,
    device: str | torch.device = "cpu",
    thorough: bool = False,
    kept: Path | None = None,
    progress: Say | None = None,
) -> Sensitivity | None:
    """The ladder of a real side; None where `ladder_rows` is 0.

    Args:
        dataset: the images of the real side.
        encoders: on the device.
        real: their features, in the order of `row_order`.
        config: how to judge.
        device: where to compute.
        thorough: ask every witness of a level that must be seen, also where the distance sees it.
        kept: a file that keeps the ladder; one of the same identity is read.
        progress: receives a line of text now and then.
    """
    if not (count := ladder_rows(min(config.ladder, config.rows), len(real.val))):
        return None
    settings = config.model_copy(
        update={
            "directions": min(config.directions, DIRECTIONS),
            "resamples": min(config.resamples, RESAMPLES),
        }
    )
    identity = hash_of([CODE_VERSION, real.identity, count, thorough, settings.identity()])
    if kept is not None and (found := read_sensitivity(kept)) is not None and found.of == identity:
        return found
    stage = _stage(dataset, real.to(torch.device(device)), count, settings.seed)
    count = len(stage.judged)

    def embedded(images: Split) -> Table:
        return embed(images, encoders, micro_batch=settings.micro_batch, device=device)

    def asked(table: Table) -> dict[str, Score]:
        return judge(table, stage.real, settings, only=ASKED, device=device)

    table = embedded(stage.judged)
    clean, distance = asked(table)[DISTANCE], WhitenedDistance(table, stage.real, settings)
    chance = distance(table)  # of the images before they are damaged
    rungs, damaged = [], list(_damaged(stage, settings.seed))
    meter = Meter("what the scores see", len(damaged), "defects", progress)
    for name, level, images in damaged:
        table, defect = embedded(images), DEFECTS[name]
        distances = distance(table)
        far = {e: value**2 - chance[e] ** 2 for e, value in distances.items()}
        scores = {DISTANCE: _costs_of(distances, clean)}
        seen = _by_distance(scores[DISTANCE])
        if len(table) != count or (level == defect.stated and (thorough or not seen)):
            found = asked(table)
            scores = {score: _costs(one) for score, one in found.items()}
            seen = tuple(one.name for one in witnesses(found) if one.objects)
            if len(table) != count:  # a distance depends on their number
                far = {e: value - excess(clean)[e] for e, value in excess(found[DISTANCE]).items()}
        rungs.append(
            Rung(
                defect=name,
                level=level,
                says=defect.at(level),
                excess={e: _brief(value) for e, value in far.items()},
                scores=scores,
                seen=seen,
            )
        )
        meter()
    found = Sensitivity(
        of=identity,
        rows=count,
        held_out=real.held_out,
        real={name: part.notes["real_distance"] for name, part in clean.encoders.items()},
        spread={name: part.notes["real_spread"] for name, part in clean.encoders.items()},
        rungs=tuple(rungs),
    )
    if kept is not None:
        write_sensitivity(kept, found)
    return found


def ladder_rows(asked: int, val: int) -> int:
    """Images of a rung: those asked for, at most a third of val, since the rest is compared with; 0 below FEWEST."""
    count = min(asked, val // 3)
    return count if count >= FEWEST else 0


def _stage(dataset: Dataset, real: Real, count: int, seed: int) -> _Stage:
    """Draw the images that are damaged as judged images are drawn, and leave them out of the real side."""
    train, val = real.train.conditions, real.val.conditions
    like = train.spec == val.spec
    rows = proportioned(val, like=train) if like else torch.arange(len(val))
    rows = rows[draw(val[rows], count, "ladder", seed)]
    if like:
        rows = rows[proportioned(val[rows], like=train)]
    left = torch.ones(len(val), dtype=torch.bool)
    left[rows] = False
    order = {side: row_order(len(getattr(dataset, side)), seed) for side in ("train", "val")}
    return _Stage(
        Damaged(dataset.val, None, 0, seed, rows=order["val"][rows]),
        Damaged(dataset.train, None, 0, seed, rows=order["train"][: len(real.train)]),
        replace(real, val=real.val.only(left.nonzero()[:, 0])),
    )


def _damaged(stage: _Stage, seed: int) -> Iterator[tuple[str, float, Split]]:
    for name, defect in DEFECTS.items():
        for level in defect.levels:
            images = defect.apply(stage.judged, stage.train, level, seed)
            if images is not None:
                yield name, level, images


def _costs_of(distances: Mapping[str, float], clean: Score) -> dict[str, Cost]:
    """The ratios of one draw and their chances, as `irdm.metrics.ratio` has them, from what it found of real ones."""
    found, error = {}, math.sqrt(1 + 1 / clean.notes["real_draws"])
    for name, distance in distances.items():
        notes = clean.encoders[name].notes
        ratio = distance / notes["real_distance"]
        p = chance_of(math.log(ratio), notes["real_spread"] * error, FREEDOM, "lower")
        found[name] = Cost(value=_brief(ratio), p=_brief(p))
    return found


def _by_distance(costs: Mapping[str, Cost]) -> tuple[str, ...]:
    """Whether the distance would object even if all other witnesses were asked, and had no doubt."""
    alarm = min(cost.p for cost in costs.values() if cost.p is not None)
    return ("distance",) if alarm * len(costs) <= ALPHA * SHARES["distance"] else ()


def _costs(score: Score) -> dict[str, Cost]:
    groups = {"mean": score.mean, "held_in": score.held_in, "held_out": score.held_out}
    parts = {name: part for name, part in groups.items() if part is not None} | score.encoders
    return {
        name: Cost(value=_brief(part.value), p=None if part.p_real is None else _brief(part.p_real))
        for name, part in parts.items()
    }


def _brief(value: float) -> float:
    """Four digits: a ladder has thousands of numbers."""
    return float(f"{value:.4g}")


def write_sensitivity(path: Path, found: Sensitivity) -> None:
    """Write a ladder with a checksum of itself."""
    write_manifest(path, found.model_dump(mode="json"))


def read_sensitivity(path: Path) -> Sensitivity | None:
    """The ladder in a file; None when there is none, or it is damaged or of another version: it is measured again."""
    try:
        return Sensitivity.model_validate(read_manifest(path, ""))
    except (OSError, ValueError, ValidationError):
        return None
