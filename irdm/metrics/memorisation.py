"""Memorisation in feature space: does the generator return its training images?

    closeness      P(d(g, train) < d(fresh, train)) for a generated g and a fresh real image, ties counting half: the
                   statistic of the data-copying test of Meehan, Chaudhuri and Dasgupta (2020) before it is made a
                   z-score. 0.5 for fresh real images, 1 for copies, towards 0 for images far from all real ones.
    authenticity   share of generated g that are further from their nearest train image x than x is from the next train
                   image (Alaa et al., 2022). 0 for copies; for fresh real images it is what `real_control` says.
    copies         share of generated g with d(g, train) below a tenth of the median d(fresh, train): train images saved
                   again, or nearly so. For fresh real images it is the share of duplicates between the two sets.

d is the distance to the nearest train row. Neither sees a copy that the encoder does not recognise, nor a train row
that is not in the table: give all of them.

Letters: n generated rows, m train rows, v fresh real rows, d features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from irdm.metrics.base import BLOCK, Picked, Tables, check_table, panel
from irdm.metrics.intervals import fold_means, folds, panel_score
from irdm.metrics.neighbours import nearest_neighbours
from irdm.ops.rows import Rows

NEAR = 0.1  # a copy lies closer to train than this share of the median distance of fresh real images


def memorisation(
    generated: Tables,
    train: Tables,
    fresh: Tables,
    *,
    held_out: Sequence[str] = (),
    partial: bool = False,
    seed: int = 0,
    block: int = BLOCK,
) -> dict[str, dict]:
    """Closeness, authenticity and copies by encoder and their means over encoders, with jackknife intervals.

    Args:
        generated: feature tables of the generator.
        train: feature tables of the images it was trained on.
        fresh: feature tables of real images it never saw.
        held_out: encoders that did not train the generator.
        partial: judge the encoders that are there; the result names the `missing` ones.
        seed: of the folds.
        block: rows compared at once.

    Returns:
        `closeness`, `authenticity` and `copies`, each with `rows` {generated, train, fresh}.

    Raises:
        ValueError: naming an encoder that is missing, of another width, or with too few rows; for rows not finite; and
            when half of the fresh rows are train rows, which leaves nothing to compare with.
    """
    names, missing = panel(list(train), generated, partial)
    panel(names, fresh, False)
    found: dict[str, dict[str, Tensor]] = {"closeness": {}, "authenticity": {}, "copies": {}}
    controls: dict[str, dict[str, float]] = {"closeness": dict.fromkeys(names, 0.5), "authenticity": {}, "copies": {}}
    sizes = {"generated": len(generated[names[0]]), "train": len(train[names[0]]), "fresh": len(fresh[names[0]])}
    fold = folds(sizes["generated"], seed)
    for name in names:
        dim = train[name].shape[1]
        check_table(name, train[name])
        check_table(name, generated[name], dim)
        check_table(name, fresh[name], dim)
        distance, authentic = _to_train(generated[name], train[name], block)
        real_distance, real_authentic = _to_train(fresh[name], train[name], block)
        usual = real_distance.median()
        if not usual > 0:
            raise ValueError(f"Encoder '{name}': half of the fresh real rows are also train rows; give unseen images.")
        found["closeness"][name] = fold_means(_share_above(distance, real_distance), fold)
        found["authenticity"][name] = fold_means(authentic, fold)
        found["copies"][name] = fold_means((distance < NEAR * usual).double(), fold)
        controls["authenticity"][name] = real_authentic.mean().item()
        controls["copies"][name] = (real_distance < NEAR * usual).double().mean().item()
    names_of = {"closeness": "closeness to train", "authenticity": "authenticity", "copies": "copies of train"}
    return {
        key: panel_score(names_of[key], "real", found[key], held_out, controls[key], missing) | {"rows": sizes}
        for key in found
    }


def _to_train(rows: Rows, train: Rows, block: int) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Distance of each row to its nearest train row, and whether that is more than the latter's own to the next."""
    distance, index = nearest_neighbours(rows, train, block)
    met, which = index.cpu().unique(return_inverse=True)
    spacing = nearest_neighbours(Picked(train, met), train, block, own=met)[0].cpu()[which]
    return distance.cpu().double(), (distance.cpu() > spacing).double()


def _share_above(values: Float64[Tensor, " n"], others: Float64[Tensor, " v"]) -> Float64[Tensor, " n"]:
    """For each value the share of `others` above it, equal ones counting half."""
    ordered = others.sort().values
    below, at_most = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return 1 - (below + at_most).double() / (2 * len(ordered))
