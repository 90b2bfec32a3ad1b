"""Memorisation: does the generator return its training images, or nearly so?

    near_copies    share of images that come alarmingly near one train image, beyond what fresh real images do: a test,
                   `irdm.metrics.copies`, on thumbnails, and under each encoder as far as these bear it out. The most
                   alarming one counts
    closeness      P(d(g, train) < d(fresh, train)) for a generated g and a fresh real image, ties counting half: the
                   statistic of the data-copying test of Meehan, Chaudhuri and Dasgupta (2020) before it is made a
                   z-score. 0.5 for fresh real images, 1 for copies, towards 0 for images far from all real ones
    authenticity   share of generated g that are further from their nearest train image x than x is from the next train
                   image (Alaa et al., 2022). 0 for copies; for fresh real images it is what the control says
    nearest_neighbour_ratio   median d(g, train) over median d(fresh, train): 0 when half are copies, 1 for fresh ones

d is the distance to the nearest train row. No test sees a copy of a train row that is not in the table.

Fresh real images are val rows under the law of draws. Controls are the same scores of one half of them against the
other, and of authenticity of all. Chances are those of the permutation test of judged and fresh rows, by the normal
law: of the mean over encoders of what each row adds (its rank for closeness, whether it is authentic, whether it is
beyond the common median).

Letters: n judged rows, v fresh rows, k folds, e encoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, Float64, Int64
from scipy import stats
from torch import Tensor

from irdm.metrics.base import EvaluationConfig, Pools
from irdm.metrics.copies import (
    Found,
    Nearest,
    both_sides,
    confirmed,
    described,
    excess,
    natural_excess,
    nearest_pictures,
    neighbours_of,
    ratios,
)
from irdm.metrics.intervals import fold_means, folds, interval, jackknife, score_of
from irdm.metrics.neighbours import nearest_neighbours
from irdm.metrics.score import Estimate, Score, grouped
from irdm.metrics.tables import Picked, Real, Table
from irdm.ops.rows import Rows
from irdm.ops.sampling import generator_for

THUMBNAILS = "thumbnails"
"""Under this name near copies are looked for in small pictures; no encoder of that name is held in or out."""
SHOWN = 8  # pairs that a result names
SAYS = {
    "closeness": (
        "closeness to train",
        "How often an image is closer to train than a fresh real one is: 0.5 is right, near 1 means copies.",
    ),
    "authenticity": (
        "authenticity",
        "Share of the images further from their nearest train image than that one is from the next.",
    ),
    "nearest_neighbour_ratio": (
        "nearest neighbours",
        "Median distance to the nearest train image, over that of fresh real images: 1 is right, 0 means copies.",
    ),
}


class _Side(NamedTuple):
    """What one side, judged or fresh, has to train under one encoder."""

    distance: Float64[Tensor, " n"]
    authentic: Float64[Tensor, " n"]
    nearest: Nearest


class _Fresh(NamedTuple):
    """What the fresh images have, under every encoder and in small pictures."""

    sides: dict[str, _Side]
    train: Float32[Tensor, "m d"] | None
    """`described` train images."""
    pictures: Nearest | None


def memorisation(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """The four scores by encoder and their means; of near copies the most alarming encoder in place of the mean.

    Every judged row is compared with every train row, and at most `manifold_rows` fresh ones are. Intervals are
    jackknives over ten folds of the judged rows together with ten of the fresh ones.

    Raises ValueError naming an encoder when half of val are train images, which leaves nothing to compare with.
    """
    pools = Pools.of(generated, real)
    kept = pools.val.sample(config.manifold_rows, "memorisation", config.seed)
    fresh = _fresh(real, kept)
    sides = {
        name: (_to_train(rows, real.train.features[name]), fresh.sides[name])
        for name, rows in generated.features.items()
    }
    near = {name: (judged.nearest, theirs.nearest) for name, (judged, theirs) in sides.items()}
    if generated.thumbnails is not None and fresh.pictures is not None and fresh.train is not None:
        pictures = nearest_pictures(generated.thumbnails, fresh.train), fresh.pictures
        near = {
            name: (confirmed(ours, pictures[0]), confirmed(theirs, pictures[1]))
            for name, (ours, theirs) in near.items()
        }
        near[THUMBNAILS] = pictures
    notes = {"rows": len(generated), "train_rows": len(real.train), "fresh_rows": len(kept), "law": pools.law}
    compared = _compared(sides, real.held_out, notes, config.seed)
    return {"near_copies": _near_copies(near, kept, real.held_out, notes, config.seed)} | compared


def _fresh(real: Real, kept: Int64[Tensor, " v"]) -> _Fresh:
    """What the fresh images `kept` have to train: the same for whatever is judged, and most of the work."""
    key = ("memorisation", kept.numpy().tobytes())
    if key not in real.remembered:
        rows, sides = real.val.only(kept), {}
        for name, train in real.train.features.items():
            sides[name] = _to_train(rows.features[name], train)
            if not sides[name].distance.median() > 0:
                raise ValueError(
                    f"Encoder '{name}': half of the fresh real images are also train images, so nothing can be said of "
                    "copies. Take them out of val."
                )
        pictures = train = None
        if rows.thumbnails is not None and real.train.thumbnails is not None:
            train = described(real.train.thumbnails)
            pictures = nearest_pictures(rows.thumbnails, train)
        real.remembered[key] = _Fresh(sides, train, pictures)
    return real.remembered[key]


# --- near copies ------------------------------------------------------------------------------------------------------


def _near_copies(
    near: Mapping[str, tuple[Nearest, Nearest]],
    fresh_rows: Int64[Tensor, " v"],
    held_out: Sequence[str],
    notes: Mapping[str, Any],
    seed: int,
) -> Score:
    encoders = {name: _near(judged, fresh, fresh_rows, seed) for name, (judged, fresh) in near.items()}

    def most_alarming(names: Sequence[str]) -> Estimate:
        name = min(names, key=lambda name: (encoders[name].p_real, -encoders[name].value))
        found = encoders[name]
        p_real = min(1.0, len(names) * (found.p_real or 0.0))
        return found.model_copy(update={"p_real": p_real, "notes": {"encoder": name, **found.notes}})

    groups = {**grouped([name for name in near if name != THUMBNAILS], held_out), "mean": list(near)}
    return Score(
        label="near copies of train",
        direction="real",
        says="Share of the images that are nearly one train image, beyond what is natural: JPEG, darker, moved by a "
        "pixel, mirrored. The most alarming encoder, or small pictures without any, counts.",
        **{group: most_alarming(names) for group, names in groups.items()},
        encoders=encoders,
        notes=dict(notes),
    )


def _near(judged: Nearest, fresh: Nearest, fresh_rows: Int64[Tensor, " v"], seed: int) -> Estimate:
    found = excess(judged.ratio, fresh.ratio)
    natural = natural_excess(fresh.ratio, len(judged.ratio), seed)
    replicates = _paired(
        lambda ours, theirs: _share(ours, found) - _share(theirs, found), judged.ratio, fresh.ratio, seed
    )
    replicates += found.excess - replicates.mean()  # which is below 0 where fewer judged images are so near
    low, high = interval(replicates)
    return Estimate(
        value=found.excess,
        ci95=(max(0.0, low), max(0.0, high)),
        control=natural.mean().item(),
        control_error=natural.std().item(),  # of one pair of halves: they overlap too much to gain from several
        p_real=both_sides(found.chance),
        replicates=tuple(replicates.tolist()),
        notes={"closest": _closest(judged, fresh), "typical": _typical(fresh, fresh_rows)},
    )


def _share(ratio: Float64[Tensor, " n"], found: Found) -> float:
    return (ratio <= found.limit).double().mean().item()


def _closest(judged: Nearest, fresh: Nearest) -> list[list[float]]:
    """[judged row, train row, ratio, share of fresh images as near] of the most alarming images."""
    order = judged.ratio.argsort(stable=True)[:SHOWN]
    return [
        [int(row), int(judged.row[row]), ratio, (fresh.ratio <= ratio).double().mean().item()]
        for row, ratio in zip(order.tolist(), judged.ratio[order].tolist(), strict=True)
    ]


def _typical(fresh: Nearest, fresh_rows: Int64[Tensor, " v"]) -> list[list[float]]:
    """[val row, train row, ratio] of fresh images around the median."""
    order = fresh.ratio.argsort(stable=True)
    start = max(0, (len(order) - SHOWN) // 2)
    return [
        [int(fresh_rows[row]), int(fresh.row[row]), fresh.ratio[row].item()]
        for row in order[start : start + SHOWN].tolist()
    ]


# --- closeness, authenticity and the ratio ----------------------------------------------------------------------------


def _compared(
    sides: Mapping[str, tuple[_Side, _Side]], held_out: Sequence[str], notes: Mapping[str, Any], seed: int
) -> dict[str, Score]:
    replicates: dict[str, dict[str, Tensor]] = {metric: {} for metric in SAYS}
    controls: dict[str, dict[str, Tensor]] = {metric: {} for metric in SAYS}
    added: dict[str, dict[str, tuple[Tensor, Tensor]]] = {metric: {} for metric in SAYS}
    for name, (judged, fresh) in sides.items():
        count = len(fresh.distance)
        order = torch.randperm(count, generator=generator_for("memorisation", "halves", seed))
        halves = fresh.distance[order[: count // 2]], fresh.distance[order[count // 2 :]]
        for metric, statistic in (("closeness", _closeness), ("nearest_neighbour_ratio", _median_ratio)):
            replicates[metric][name] = _paired(statistic, judged.distance, fresh.distance, seed)
            controls[metric][name] = _paired(statistic, *halves, seed)
        replicates["authenticity"][name] = fold_means(judged.authentic, folds(len(judged.authentic), seed))
        controls["authenticity"][name] = fold_means(fresh.authentic, folds(count, seed))
        together = torch.cat([judged.distance, fresh.distance])
        rank = torch.from_numpy(stats.rankdata(together.numpy())) / len(together)
        beyond = (together > together.median()).double()
        added["closeness"][name] = rank[:-count], rank[-count:]
        added["nearest_neighbour_ratio"][name] = beyond[:-count], beyond[-count:]
        added["authenticity"][name] = judged.authentic, fresh.authentic
    return {
        metric: _with_chances(
            score_of(
                label,
                "real",
                says,
                replicates[metric],
                held_out,
                controls=controls[metric],
                limits=(0.0, math.inf if metric == "nearest_neighbour_ratio" else 1.0),
                notes=notes,
            ),
            added[metric],
            held_out,
        )
        for metric, (label, says) in SAYS.items()
    }


def _with_chances(score: Score, added: Mapping[str, tuple[Tensor, Tensor]], held_out: Sequence[str]) -> Score:
    """The score with the permutation test's chances in place of those that take value and control for independent."""

    def with_chance(found: Estimate, names: Sequence[str]) -> Estimate:
        judged, fresh = (torch.stack([added[name][side] for name in names]).mean(0) for side in (0, 1))
        return found.model_copy(update={"p_real": _permuted(judged, fresh)})

    groups = {group: with_chance(getattr(score, group), names) for group, names in grouped([*added], held_out).items()}
    encoders = {name: with_chance(found, [name]) for name, found in score.encoders.items()}
    return score.model_copy(update={**groups, "encoders": encoders})


def _permuted(judged: Float64[Tensor, " n"], fresh: Float64[Tensor, " v"]) -> float:
    """Two-sided p-value of a difference of means under permutations of all rows, by the normal law."""
    spread = torch.cat([judged, fresh]).std().item()
    error = spread * math.sqrt(1 / len(judged) + 1 / len(fresh))
    difference = abs((judged.mean() - fresh.mean()).item())
    return float(2 * stats.norm.sf(difference / error)) if error > 0 else 1.0


def _to_train(rows: Rows, train: Rows) -> _Side:
    """Distance of each row to its nearest train row, and whether that is more than the latter's own to the next."""
    near, numbers = nearest_neighbours(rows, train, neighbours_of(train))
    met, which = numbers[:, 0].unique(return_inverse=True)
    spacing = nearest_neighbours(Picked(train, met), train, own=met)[0][which, 0]
    return _Side(near[:, 0].double(), (near[:, 0] > spacing).double(), Nearest(ratios(near), numbers[:, 0]))


def _paired(
    statistic: Callable[[Tensor, Tensor], float], ours: Float64[Tensor, " n"], theirs: Float64[Tensor, " v"], seed: int
) -> Float64[Tensor, " k"]:
    """Replicates of a statistic of two independent samples, by the jackknife over folds of both at once."""
    own, other = folds(len(ours), seed), folds(len(theirs), seed)
    count = min(int(own.max()), int(other.max())) + 1
    without = [statistic(ours[own != k], theirs[other != k]) for k in range(count)]
    return jackknife(statistic(ours, theirs), torch.tensor(without, dtype=torch.float64))


def _closeness(judged: Float64[Tensor, " n"], fresh: Float64[Tensor, " v"]) -> float:
    """How often a judged distance is below a fresh one, equal ones counting half."""
    ordered = fresh.sort().values
    below, at_most = (torch.searchsorted(ordered, judged, right=right).double() for right in (False, True))
    return (1 - (below + at_most) / (2 * len(ordered))).mean().item()


def _median_ratio(judged: Float64[Tensor, " n"], fresh: Float64[Tensor, " v"]) -> float:
    return (judged.median() / fresh.median()).item()
