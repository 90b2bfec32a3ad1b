"""Two results side by side: which generator is better, and how sure that is.

Two results are comparable when their protocols are equal (what decided the numbers beside the generator: real images,
encoders with their weights, settings, seeds, the number of images), and so are the notes of a score. Replicates average
to the score, and replicate k of both results stands for the same noise, conditions or prompts, or for the same fold of
rows. Pairs of replicates are drawn with replacement: luck that both generators share cancels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from irdm.evaluation.result import Result
from irdm.metrics.base import EvaluationConfig
from irdm.metrics.intervals import bootstrap_interval
from irdm.metrics.score import Direction, Estimate, Score

FEWEST = 4  # replicates: an interval from fewer says nothing
WORDS = {
    "real.train": "other training images",
    "real.val": "other held-out images",
    "real.image_shape": "images of another shape",
    "real.encoders": "other encoders",
    "real.held_out": "other encoders held out",
    "real": "other real rows",
    "settings": "other settings",
    "images": "another number of judged images",
    "law": "another law of draws",
    "prompts": "other prompts",
}
"""What a difference of protocols is called, by where it lies; the first that fits."""


def compare(a: Result, b: Result, *, seed: int = 0) -> dict[str, Any]:
    """The paired difference of two results of one protocol.

    Args:
        a: a result.
        b: another.
        seed: of the bootstrap.

    Returns:
        `protocol`, and `metrics` {name: {label, direction, mean, held_in, held_out, per_encoder {encoder: part}}}. A
        part is {a, b, difference (b - a), ci95, better}; a group that has no mean is None. `better` is "a" or "b" where
        that is sure: the interval excludes 0 and, for a metric whose best value is that of fresh real images, both
        values together are surely on one side of it.

    Raises:
        ValueError: saying every difference between the protocols; for scores that only one has, or too few replicates.
    """
    first, second = a.scores, b.scores
    odd = _differences(_protocol(a), _protocol(b))
    odd += [
        f"a score that only {'A' if name in first else 'B'} has: {name}" for name in [*first, *second] if
        (name in first) != (name in second)
    ]  # fmt: skip
    for name in first.keys() & second.keys():
        odd += _differences(_conditions(first[name]), _conditions(second[name]), name)
    if odd:
        raise ValueError(
            "The two results follow unlike protocols and cannot be compared:\n"
            + "\n".join(f"  {line}" for line in dict.fromkeys(odd))
            + "\nEvaluate both against one reference, with the same encoders, number of images, settings and seeds."
        )
    return {"protocol": a.protocol, "metrics": {name: _metric(name, first[name], second[name], seed) for name in first}}


def _protocol(result: Result) -> dict[str, Any]:
    """The protocol, with the settings that are at their defaults filled in."""
    settings = EvaluationConfig().model_dump(mode="json")
    return {**result.protocol, "settings": settings | dict(result.protocol.get("settings", {}))}


def _conditions(score: Score) -> dict[str, Any]:
    """What two results of one metric must share."""
    return {"direction": score.direction, "encoders": sorted(score.encoders), **score.notes}


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    """A line for each leaf that differs, in words first."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [*a, *(key for key in b if key not in a)]
        return [line for key in keys for line in _differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))]
    if a == b:
        return []
    words = next((words for where, words in WORDS.items() if f"{path}.".startswith(f"{where}.")), "")
    return [f"{f'{words}, ' if words else ''}{path}: {_short(a)} in A, {_short(b)} in B"]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1", text)  # of a hash, enough to tell it from another
    return text if len(text) <= 80 else f"{text[:80]}..."


def _metric(name: str, a: Score, b: Score, seed: int) -> dict[str, Any]:
    def part(where: str, one: Estimate | None, two: Estimate | None) -> dict[str, Any] | None:
        return None if one is None or two is None else _part(f"{name}, {where}", a.direction, one, two, seed)

    return {
        "label": a.label,
        "direction": a.direction,
        **{group: part(group, getattr(a, group), getattr(b, group)) for group in ("mean", "held_in", "held_out")},
        "per_encoder": {encoder: part(encoder, a.encoders[encoder], b.encoders[encoder]) for encoder in a.encoders},
    }


def _part(where: str, direction: Direction, a: Estimate, b: Estimate, seed: int) -> dict[str, Any]:
    """The difference of two estimates from their replicates."""
    sizes = len(a.replicates), len(b.replicates)
    if sizes[0] != sizes[1] or sizes[0] < FEWEST:
        raise ValueError(
            f"{where} has {sizes[0]} and {sizes[1]} replicates; a paired comparison needs equally many, {FEWEST} or "
            "more. Evaluate both again, with one version of irdm."
        )
    ours, theirs = (torch.tensor(side.replicates, dtype=torch.float64) for side in (a, b))
    low, high = bootstrap_interval(theirs - ours, seed)
    better = None
    if not low <= 0 <= high:
        up = "b" if low > 0 else "a"  # which is higher
        down = "a" if low > 0 else "b"
        if direction != "real":
            better = up if direction == "higher" else down
        elif a.control is not None and b.control is not None:
            middle = bootstrap_interval((ours + theirs) / 2 - (a.control + b.control) / 2, seed)
            if not middle[0] <= 0 <= middle[1]:  # the one that is further on that side is further from real
                better = down if middle[0] > 0 else up
    return {"a": a.value, "b": b.value, "difference": b.value - a.value, "ci95": [low, high], "better": better}
