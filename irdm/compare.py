"""Two results side by side: which generator is better, and how sure that is.

What a result must carry to be compared honestly:

    protocol   what decided the numbers beside the generator: the reference (a hash), the panel with its weights, the
               rows, the settings and seeds. Two results are comparable when their protocols are equal.
    metrics    every entry with a `direction`. The score itself is one of
                   per_encoder {encoder: {replicates: [K numbers], held_out: bool}}, with means that may be null, or
                   replicates: [K numbers], or null where there is nothing to score.
               Replicates average to the score, and replicate k of both results stands for the same noise, labels or
               prompts, or for the same fold of rows (`irdm.metrics.intervals`). Whatever a metric says of its own
               conditions (CONDITIONS) must be equal too.

Pairs of replicates are drawn with replacement: luck that both generators share cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from irdm.metrics.intervals import bootstrap_interval

CONDITIONS = ("name", "direction", "missing", "rows", "k", "protocol", "classifier")
FEWEST = 4  # replicates: an interval from fewer says nothing


def compare(a: Mapping[str, Any], b: Mapping[str, Any], *, seed: int = 0) -> dict:
    """The paired difference of two results of one protocol.

    Args:
        a: a result, as in result.json.
        b: another.
        seed: of the bootstrap.

    Returns:
        `protocol`, and `metrics` {name: {direction, and the parts mean, held_in, held_out, per_encoder {encoder: part}
        or value}}. A part is {a, b, difference (b - a), ci95, better}: `better` is "a" or "b" when the interval
        excludes 0 and the metric has a better side, else null. A group that has no mean is null.

    Raises:
        ValueError: naming every difference between the protocols; for a result without a protocol or metrics, metrics
            that only one has, or fewer than four replicates.
    """
    found = [_metrics(result, which) for result, which in ((a, "first"), (b, "second"))]
    differences = _differences(a["protocol"], b["protocol"], "protocol")
    differences += [f"{name}: only in the {'first' if name in found[0] else 'second'}" for name in found[0] ^ found[1]]
    for name in found[0] & found[1]:
        for condition in CONDITIONS:
            differences += _differences(a[name].get(condition), b[name].get(condition), f"{name}.{condition}")
        scores = [set(result[name].get("per_encoder") or ()) for result in (a, b)]
        differences += _differences(sorted(scores[0]), sorted(scores[1]), f"{name}.per_encoder")
    if differences:
        raise ValueError(
            "The two results follow unlike protocols and cannot be compared:\n"
            + "\n".join(f"  {line}" for line in sorted(differences))
            + "\nEvaluate both against one reference, with the same panel, rows, settings and seeds."
        )
    metrics = {name: _compare_metric(name, a[name], b[name], seed) for name in a if name in found[0]}
    return {"protocol": a["protocol"], "metrics": metrics}


def _metrics(result: Mapping[str, Any], which: str) -> set[str]:
    names = {name for name, value in result.items() if isinstance(value, Mapping) and "direction" in value}
    if not names or "protocol" not in result:
        raise ValueError(
            f"The {which} result has {'no protocol' if names else 'no metrics with a direction'}: another version "
            "wrote it. Run `irdm eval` again."
        )
    return names


def _differences(a: Any, b: Any, path: str) -> list[str]:
    """A line for each leaf that differs."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = sorted(a.keys() | b.keys())
        return [line for key in keys for line in _differences(a.get(key), b.get(key), f"{path}.{key}")]
    return [] if a == b else [f"{path}: {a} in the first, {b} in the second"]


def _compare_metric(name: str, a: Mapping[str, Any], b: Mapping[str, Any], seed: int) -> dict:
    direction = a["direction"]
    if "per_encoder" not in a:
        if a["replicates"] is None and b["replicates"] is None:
            return {"direction": direction, "value": None}
        return {"direction": direction, "value": _part(name, direction, a["replicates"], b["replicates"], seed)}
    encoders = a["per_encoder"]
    groups = {
        "mean": list(encoders),
        "held_in": [e for e in encoders if not encoders[e]["held_out"]],
        "held_out": [e for e in encoders if encoders[e]["held_out"]],
    }

    def part(label: str, members: list[str]) -> dict:
        first, second = ([side["per_encoder"][e]["replicates"] for e in members] for side in (a, b))
        return _part(f"{name}.{label}", direction, _mean(first), _mean(second), seed)

    means = {group: None if a[group] is None else part(group, members) for group, members in groups.items()}
    return {"direction": direction, **means, "per_encoder": {encoder: part(encoder, [encoder]) for encoder in encoders}}


def _mean(columns: Sequence[Sequence[float]]) -> list[float]:
    """Replicate by replicate, over encoders."""
    return [sum(row) / len(row) for row in zip(*columns, strict=True)]


def _part(name: str, direction: str, a: Sequence[float] | None, b: Sequence[float] | None, seed: int) -> dict:
    """The difference of two scores from their replicates."""
    sizes = [len(side or ()) for side in (a, b)]
    if sizes[0] != sizes[1] or sizes[0] < FEWEST:
        raise ValueError(
            f"{name} has {sizes[0]} and {sizes[1]} replicates; a paired comparison needs equally many, {FEWEST} or "
            "more. Evaluate again with more (--evaluation.replicates for a run)."
        )
    ours, theirs = (torch.tensor(side, dtype=torch.float64) for side in (a, b))
    low, high = bootstrap_interval(theirs - ours, seed)
    better = None
    if direction in ("lower", "higher") and not low <= 0 <= high:
        better = "b" if (low > 0) == (direction == "higher") else "a"
    first, second = ours.mean().item(), theirs.mean().item()
    return {"a": first, "b": second, "difference": second - first, "ci95": [low, high], "better": better}
