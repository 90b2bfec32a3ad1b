"""Memorisation in feature space: does the generator return its training images?

    closeness      P(d(g, train) < d(fresh, train)) for a generated g and a fresh real image, ties counting half: the
                   statistic of the data-copying test of Meehan, Chaudhuri and Dasgupta (2020) before it is made a
                   z-score. 0.5 for fresh real images, 1 for copies, towards 0 for images far from all real ones.
    authenticity   share of generated g that are further from their nearest train image x than x is from the next train
                   image (Alaa et al., 2022). 0 for copies; for fresh real images it is what the control says.
    copies         share of generated g with d(g, train) below a tenth of the median d(fresh, train): train images saved
                   again, or nearly so. For fresh real images it is the share of duplicates between the two sets.
    nearest_neighbour_ratio   median d(g, train) over median d(fresh, train): 0 when half are copies, 1 for fresh ones.

d is the distance to the nearest train row. Neither sees a copy that the encoder does not recognise, nor a train row
that is not in the table.

Letters: n rows, v fresh real rows, k folds.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from irdm.metrics.base import EvaluationConfig, Picked
from irdm.metrics.intervals import fold_means, folds, jackknife, score_of
from irdm.metrics.neighbours import nearest_neighbours
from irdm.metrics.score import Score
from irdm.metrics.tables import Real, Table
from irdm.ops.rows import Rows

NEAR = 0.1  # a copy lies closer to train than this share of the median distance of fresh real images
SAYS = {
    "closeness": (
        "closeness to train",
        "How often an image is closer to train than a fresh real one is: 0.5 is right, near 1 means copies.",
    ),
    "authenticity": (
        "authenticity",
        "Share of the images further from their nearest train image than that one is from the next.",
    ),
    "copies": ("copies of train", "Share of the images that are train images saved again, or nearly so."),
    "nearest_neighbour_ratio": (
        "nearest neighbours",
        "Median distance to the nearest train image, over that of fresh real images: 1 is right, 0 means copies.",
    ),
}


def memorisation(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """The four scores by encoder and their means, with jackknife intervals; val are the fresh real images.

    The controls of closeness and of the ratio are 0.5 and 1 by definition. Every row of every table is compared.

    Raises ValueError naming an encoder when half of val are train images, which leaves nothing to compare with.
    """
    fold = folds(len(generated), config.seed)
    found: dict[str, dict[str, Tensor]] = {metric: {} for metric in SAYS}
    controls: dict[str, dict[str, float]] = {metric: {} for metric in SAYS}
    for name, rows in generated.features.items():
        train = real.train.features[name]
        distance, authentic = _to_train(rows, train)
        fresh, fresh_authentic = _to_train(real.val.features[name], train)
        usual = fresh.median().item()
        if not usual > 0:
            raise ValueError(
                f"Encoder '{name}': half of the fresh real images are also train images, so nothing can be said of "
                "copies. Take them out of val."
            )
        near = (distance < NEAR * usual).double()
        of_rows = {"closeness": _share_above(distance, fresh), "authenticity": authentic, "copies": near}
        for metric, values in of_rows.items():
            found[metric][name] = fold_means(values, fold)
        found["nearest_neighbour_ratio"][name] = _medians(distance, fold) / usual
        controls["closeness"][name], controls["nearest_neighbour_ratio"][name] = 0.5, 1.0
        controls["authenticity"][name] = fresh_authentic.mean().item()
        controls["copies"][name] = (fresh < NEAR * usual).double().mean().item()
    notes = {"rows": len(generated), "train_rows": len(real.train), "fresh_rows": len(real.val)}
    return {
        metric: score_of(
            label,
            "real",
            says,
            found[metric],
            real.held_out,
            controls=controls[metric],
            limits=(0.0, math.inf if metric == "nearest_neighbour_ratio" else 1.0),
            notes=notes,
        )
        for metric, (label, says) in SAYS.items()
    }


def _to_train(rows: Rows, train: Rows) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Distance of each row to its nearest train row, and whether that is more than the latter's own to the next."""
    distance, index = (found[:, 0] for found in nearest_neighbours(rows, train))
    met, which = index.unique(return_inverse=True)
    spacing = nearest_neighbours(Picked(train, met), train, own=met)[0][which, 0]
    return distance.double(), (distance > spacing).double()


def _medians(values: Float64[Tensor, " n"], fold: Int64[Tensor, " n"]) -> Float64[Tensor, " k"]:
    """Replicates of the median, by the jackknife over the folds."""
    without = torch.stack([values[fold != k].median() for k in range(int(fold.max()) + 1)])
    return jackknife(values.median().item(), without)


def _share_above(values: Float64[Tensor, " n"], others: Float64[Tensor, " v"]) -> Float64[Tensor, " n"]:
    """For each value the share of `others` above it, equal ones counting half."""
    ordered = others.sort().values
    below, at_most = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return 1 - (below + at_most).double() / (2 * len(ordered))
