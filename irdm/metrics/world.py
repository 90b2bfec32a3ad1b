"""Pictures of the captioned world, judged exactly and reported as GenEval is: six rates and their unweighted mean.

Letters: n rows, p captions of a category, k replicates.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from irdm.conditions import PromptSpec
from irdm.metrics.base import BLOCK, EvaluationConfig
from irdm.metrics.intervals import FOLDS, chance, fold_means, folds, interval, standard_error, together
from irdm.metrics.score import Estimate, Score
from irdm.metrics.tables import Real, Table
from irdm.ops.rows import row_blocks
from irdm.world import CATEGORIES, EMBEDDER, SIDE, correct, read


def world(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """Share of correct pictures by category, and the mean of the six; of val as control. Intervals are over captions.

    A rate is the mean over the captions of a category of the share of their pictures that are correct. Empty for other
    images than those of the world, and for fewer than two captions of some category.
    """
    sides = [_shares(table, config) for table in (generated, real.val)]
    if any(len(shares) < 2 for side in sides for shares in side.values()) or not all(sides):
        return {}
    found = [_replicates(side, config.seed) for side in sides]
    says = "Share of pictures that show exactly what their caption asks for, as an exact judge reads them"
    scores = {"world": _score("world, mean of six", f"{says}: mean of six categories.", *(x["mean"] for x in found))}
    for category, shares in sides[0].items():
        score = _score(f"world, {category}", f"{says}: {category}.", *(x[category] for x in found))
        scores[f"world_{category}"] = score.model_copy(update={"notes": {"captions": len(shares)}})
    return scores


def _shares(table: Table, config: EvaluationConfig) -> dict[str, Float64[Tensor, " p"]]:
    """By category: the share of correct pictures of each caption, in the order of the captions."""
    spec, pictures = table.conditions.spec, table.thumbnails
    if not isinstance(spec, PromptSpec) or spec.embedder != EMBEDDER:
        return {}
    if pictures is None or tuple(pictures.shape[1:]) != (3, SIDE, SIDE):
        return {}
    captions, start = table.conditions.captions(), 0
    verdicts: dict[str, dict[str, list[bool]]] = {category: {} for category in CATEGORIES}
    for block in row_blocks(pictures, BLOCK):
        some = captions[start : start + len(block)]
        for text, right in zip(some, correct(block.float() / 255, some).tolist(), strict=True):
            verdicts[read(text).category].setdefault(text, []).append(right)
        start += len(block)
    return {
        category: torch.tensor([sum(some) / len(some) for _, some in sorted(of.items())], dtype=torch.float64)
        for category, of in verdicts.items()
    }


def _replicates(side: dict[str, Float64[Tensor, " p"]], seed: int) -> dict[str, Float64[Tensor, " k"]]:
    """Of each rate and of their mean, by the jackknife over folds of captions."""
    count = min(FOLDS, *(len(shares) for shares in side.values()))
    found = {category: fold_means(shares, folds(len(shares), seed, count)) for category, shares in side.items()}
    return {**found, "mean": torch.stack([*found.values()]).mean(0)}


def _score(label: str, says: str, judged: Float64[Tensor, " k"], real: Float64[Tensor, " k"]) -> Score:
    value, control = judged.mean().item(), real.mean().item()
    low, high = interval(judged)
    errors = [(standard_error(side), len(side) - 1) for side in (judged, real)]
    mean = Estimate(
        value=value,
        ci95=(max(low, 0.0), min(high, 1.0)),
        control=control,
        control_error=errors[1][0],
        p_real=chance(value - control, *together(*errors), "higher"),
        replicates=tuple(judged.tolist()),
    )
    return Score(label=label, direction="higher", says=says, mean=mean)
