"""Two scored folders of the same prompts and scorer: paired differences of rates, and whose images win for one noise.

Letters: p prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from irdm.geneval.prompts import PUBLISHED
from irdm.geneval.summary import Scored, by_prompt, percentiles, resampled


def compare_scored(a: Scored, b: Scored, seed: int = 0) -> dict[str, Any]:
    """`rates` {category or overall: {a, b, difference (b - a), ci95}}, by bootstrap over prompts of both together;
    `pickscore` {a, b, difference, ci95, wins (the share of images of b that are liked better), wins_ci95, matched}, or
    None where one has none. `matched`: both were drawn from the same noise.

    Raises ValueError for other prompts, other images, or another scorer: its builds alone differ by as much as models.
    """
    checks = {
        "judged by another metric": (a.metric, b.metric),
        "judged by another build of the scorer": (a.scorer, b.scorer),
        "of other prompts": (a.prompts, b.prompts),
        "of other numbers of images": tuple([image.file for image in one.images] for one in (a, b)),
    }
    if odd := [what for what, (one, other) in checks.items() if one != other]:
        raise ValueError(f"The two are {' and '.join(odd)}, so they cannot be compared. Score both folders alike.")
    found: dict[str, Any] = {}
    pairs = {tag: by_prompt(b.images, tag) - by_prompt(a.images, tag) for tag in PUBLISHED}
    draws = resampled(pairs, seed)
    for tag in PUBLISHED:
        found[tag] = _part(a.rates[tag].value, b.rates[tag].value, draws[tag])
    found["overall"] = _part(a.overall.value, b.overall.value, torch.stack([*draws.values()]).mean(0))
    return {"metric": a.metric, "rates": found, "pickscore": _liked(a, b, seed)}


def _part(a: float, b: float, draws: Float64[Tensor, " k"]) -> dict[str, Any]:
    return {"a": a, "b": b, "difference": b - a, "ci95": percentiles(draws)}


def _liked(a: Scored, b: Scored, seed: int) -> dict[str, Any] | None:
    if a.pickscore is None or b.pickscore is None:
        return None
    theirs, ours = (torch.tensor([image.pickscore for image in one.images], dtype=torch.float64) for one in (a, b))
    wins = ((ours > theirs).double() + 0.5 * (ours == theirs).double()).tolist()
    numbers = [image.number for image in a.images]
    pairs = {"wins": _means(wins, numbers), "difference": _means((ours - theirs).tolist(), numbers)}
    draws = resampled(pairs, seed)
    noise = [{key: one.render.get(key) for key in ("noise", "samples", "shape")} for one in (a, b)]
    return {
        **{"a": a.pickscore.value, "b": b.pickscore.value},
        **{"difference": pairs["difference"].mean().item(), "ci95": percentiles(draws["difference"])},
        **{"wins": pairs["wins"].mean().item(), "wins_ci95": percentiles(draws["wins"])},
        "matched": noise[0] == noise[1] and bool(a.render),
    }


def _means(values: Sequence[float], numbers: Sequence[int]) -> Float64[Tensor, " p"]:
    """The mean of each prompt."""
    groups: dict[int, list[float]] = {}
    for value, number in zip(values, numbers, strict=True):
        groups.setdefault(number, []).append(value)
    return torch.tensor([sum(some) / len(some) for some in groups.values()], dtype=torch.float64)


def comparison_lines(found: dict[str, Any]) -> list[str]:
    """What `irdm compare` prints of two scored folders."""
    width = max(len(tag) for tag in PUBLISHED)
    lines = [found["metric"], f"  {'':{width}}  {'A':>6}  {'B':>6}  {'B - A':>7}  95% interval"]
    for name, part in found["rates"].items():
        low, high = part["ci95"]
        numbers = f"{part['a']:6.3f}  {part['b']:6.3f}  {part['difference']:+7.3f}"
        lines.append(f"  {name:{width}}  {numbers}  {low:+.3f} to {high:+.3f}")
    lines.append("PickScore of the same images")
    if (liked := found["pickscore"]) is None:
        return [*lines, "  not measured for both: score the folders with --pickscore"]
    low, high = liked["ci95"]
    numbers = f"{liked['a']:6.2f}  {liked['b']:6.2f}  {liked['difference']:+7.2f}"
    lines.append(f"  {'mean':{width}}  {numbers}  {low:+.2f} to {high:+.2f}")
    low, high = liked["wins_ci95"]
    noise = "for one noise" if liked["matched"] else "for one prompt; the noise is not known to be the same"
    lines.append(f"  B is liked better than A in {liked['wins']:.1%} of pairs ({low:.1%} to {high:.1%}) {noise}")
    return lines
