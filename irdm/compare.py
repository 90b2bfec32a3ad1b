"""Two results side by side: which generator is better, and how sure that is.

Two results are comparable when their protocols are equal (what decided the numbers beside the generator: real images,
encoders with their weights, settings, seeds, the number of images), and so are the notes of a score. Replicates average
to the score, and replicate k of both results stands for the same noise, conditions or prompts, or for the same fold of
rows. Differences are those of pairs of replicates, by Student's t: luck that both generators share cancels.

Every score has a target, and nothing is better than real. Where lower or higher is good, the one that loses must be
further than fresh real images are (its `p_real`); where what they score is best, the two must differ and their middle
must lie on one side of it. So an unlucky draw of real images is not beaten by the same images blurred.

Many rows are printed, and of two equal generators one row or the other would look better by chance. So one is the
verdict, named beforehand (`PRIMARY`), and may err in 2.5% of comparisons; all others together may err in another 2.5%
(Holm, with these weights). And who returns training images is not better, whatever else is: near copies veto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from irdm.evaluation.result import Result
from irdm.metrics.base import EvaluationConfig
from irdm.metrics.intervals import chance, holm, interval, standard_error, together, worst
from irdm.metrics.score import Direction, Estimate, Score

FEWEST = 4  # replicates: an interval from fewer says nothing
LEVEL = 0.05  # of all rows together
PRIMARY = ("whitened_ratio", "sw_ratio")
"""The verdict: the first of these that both results have. By all encoders; where one result is of a run, by those held
out, since its generator may game the encoders that trained it."""
COPIES = "near_copies"
"""The score that vetoes."""
ALARM = 0.01  # a share of copies that so few fresh draws have, corrected for the number of encoders
GROUPS = ("mean", "held_in", "held_out")
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


def compare(a: Result, b: Result) -> dict[str, Any]:
    """The paired difference of two results of one protocol.

    Returns:
        `protocol`;
        `verdict` {says, better, score, group, p, copies}: a sentence, "a", "b" or None, the score that decides and its
        group (both None when neither result has one), its corrected p, and the results that near copies veto;
        `metrics` {name: {label, direction, mean, held_in, held_out, per_encoder {encoder: part}}}. A part is {a, b,
        difference (b - a), ci95, p, corrected, better}; a group that has no mean is None. p is the probability that
        chance alone makes one look better as surely; `corrected` counts the rows that are compared, a score's groups
        or else its encoders, and is None for the others. `better` is "a" or "b" where `corrected` is below 0.05.

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
    metrics = {name: _metric(name, first[name], second[name]) for name in first}
    primary = _primary(metrics, trained=a.step is not None or b.step is not None)
    copying = _copying(a, b)
    _decide(metrics, primary, copying)
    return {"protocol": a.protocol, "verdict": _verdict(metrics, primary, copying), "metrics": metrics}


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


def _metric(name: str, a: Score, b: Score) -> dict[str, Any]:
    def part(where: str, one: Estimate | None, two: Estimate | None) -> dict[str, Any] | None:
        return None if one is None or two is None else _part(f"{name}, {where}", a.direction, one, two)

    return {
        "label": a.label,
        "direction": a.direction,
        **{group: part(group, getattr(a, group), getattr(b, group)) for group in GROUPS},
        "per_encoder": {encoder: part(encoder, a.encoders[encoder], b.encoders[encoder]) for encoder in a.encoders},
    }


def _part(where: str, direction: Direction, a: Estimate, b: Estimate) -> dict[str, Any]:
    """The difference of two estimates from their replicates; `better` is who would be, were it sure."""
    sizes = len(a.replicates), len(b.replicates)
    if sizes[0] != sizes[1] or sizes[0] < FEWEST:
        raise ValueError(
            f"{where} has {sizes[0]} and {sizes[1]} replicates; a paired comparison needs equally many, {FEWEST} or "
            "more. Evaluate both again, with one version of irdm."
        )
    ours, theirs = (torch.tensor(side.replicates, dtype=torch.float64) for side in (a, b))
    apart, freedom = theirs - ours, sizes[0] - 1
    p, up = chance(apart.mean().item(), standard_error(apart), freedom), apart.mean() > 0
    better = "b" if up == (direction == "higher") else "a"
    if direction != "real":
        p = max(p, (a if better == "b" else b).p_real or 0.0)
    else:
        better = None
        if a.control is not None and b.control is not None:
            middle, real = (ours + theirs) / 2, (a.control + b.control) / 2
            errors = (standard_error(middle), freedom), (a.control_error or 0.0, freedom)
            p = max(p, chance(middle.mean().item() - real, *together(*errors)))
            better = "b" if up == (middle.mean() < real) else "a"  # further on its side is further from real
    return {"a": a.value, "b": b.value, "difference": b.value - a.value, "ci95": list(interval(apart)), "p": p} | {
        "corrected": None,
        "better": better,
    }


def _rows(metric: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts that are compared: the groups or, without a common scale, the encoders."""
    groups = {group: metric[group] for group in GROUPS if metric[group]}
    return groups or metric["per_encoder"]


def _primary(metrics: Mapping[str, Any], *, trained: bool) -> tuple[str, str] | None:
    """The score and the group that decide."""
    for name in PRIMARY:
        if name in metrics:
            return name, "held_out" if trained and metrics[name]["held_out"] else "mean"
    return None


def _copying(a: Result, b: Result) -> dict[str, str]:
    """Of the results that return more training images than fresh real ones would seem to: what is to be said."""
    found = {}
    for side, result in (("a", a), ("b", b)):
        score = result.scores.get(COPIES)
        alarm = worst(score) if score else None
        if score and alarm and alarm[1] < ALARM:
            seen = score.encoders[alarm[0]]
            if seen.value > (seen.control or 0.0):
                real = "" if seen.control is None else f", of fresh real images {seen.control:.1%}"
                found[side] = f"{seen.value:.1%} {score.label}{real} ({alarm[0]})"
    return found


def _decide(metrics: Mapping[str, Any], primary: tuple[str, str] | None, copying: Mapping[str, str]) -> None:
    """Correct every p for the number of rows, and leave `better` only where it is sure."""
    rows = {(name, where): part for name, metric in metrics.items() for where, part in _rows(metric).items()}
    many = len(rows) - (primary is not None)
    weights = {key: 0.5 if key == primary else (0.5 if primary else 1.0) / many for key in rows}
    for key, corrected in holm({key: part["p"] for key, part in rows.items()}, weights).items():
        rows[key]["corrected"] = corrected
    for metric in metrics.values():
        for part in (*(metric[group] for group in GROUPS if metric[group]), *metric["per_encoder"].values()):
            corrected = part["corrected"]
            if corrected is None or corrected >= LEVEL or part["better"] in copying:
                part["better"] = None


def _verdict(metrics: Mapping[str, Any], primary: tuple[str, str] | None, copying: Mapping[str, str]) -> dict[str, Any]:
    """The comparison in a sentence."""
    found: dict[str, Any] = {"score": None, "group": None, "p": None, "better": None, "copies": sorted(copying)}
    if primary is None:
        says = "There is no distance to real images to decide by; the rows below stand for themselves."
    else:
        name, group = primary
        part = metrics[name][group]
        found |= {"score": name, "group": group, "p": part["corrected"], "better": part["better"]}
        by = metrics[name]["label"] + {"mean": "", "held_out": ", held-out encoders"}[group]
        numbers = f"{by}: {part['a']:.3g} in A, {part['b']:.3g} in B, p = {found['p']:.2g}"
        nearer = "b" if part["difference"] < 0 else "a"
        if part["better"]:
            says = f"{part['better'].upper()} is better ({numbers})."
        elif found["p"] < LEVEL:
            says = f"{nearer.upper()} is nearer to train, and not better: it copies ({numbers})."
        else:
            says = f"Neither is surely better ({numbers})."
    says += "".join(f" {side.upper()} holds {what}." for side, what in sorted(copying.items()))
    return {"says": says, **found}
