"""Memorisation in feature space: does the generator return its training images?

    closeness      P(d(g, train) < d(fresh, train)) for a generated g and a fresh real image, ties counting half: the
                   statistic of the data-copying test of Meehan, Chaudhuri and Dasgupta (2020) before it is made a
                   z-score. 0.5 for fresh real images, 1 for copies, towards 0 for images far from all real ones.
    authenticity   share of generated g that are further from their nearest train image x than x is from the next train
                   image (Alaa et al., 2022). 0 for copies; for fresh real images it is what `real_control` says.

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
    """Closeness and authenticity by encoder and their means over encoders, with jackknife intervals.

    Args:
        generated: feature tables of the generator.
        train: feature tables of the images it was trained on.
        fresh: feature tables of real images it never saw.
        held_out: encoders that did not train the generator.
        partial: judge the encoders that are there; the result names the `missing` ones.
        seed: of the folds.
        block: rows compared at once.

    Returns:
        `closeness` and `authenticity`, each with `rows` {generated, train, fresh} and, in each encoder's part,
        `copies`: the share of generated rows at distance 0 from a train row.

    Raises:
        ValueError: naming an encoder that is missing, of another width, or with too few rows; for rows not finite; and
            when half of the fresh rows are train rows, which leaves nothing to compare with.
    """
    names, missing = panel(list(train), generated, partial)
    panel(names, fresh, False)
    closeness, authenticity, controls, copies = {}, {}, {}, {}
    sizes = {"generated": len(generated[names[0]]), "train": len(train[names[0]]), "fresh": len(fresh[names[0]])}
    fold = folds(sizes["generated"], seed)
    for name in names:
        dim = train[name].shape[1]
        check_table(name, train[name])
        check_table(name, generated[name], dim)
        check_table(name, fresh[name], dim)
        distance, authentic = _to_train(generated[name], train[name], block)
        real_distance, real_authentic = _to_train(fresh[name], train[name], block)
        if not real_distance.median() > 0:
            raise ValueError(f"Encoder '{name}': half of the fresh real rows are also train rows; give unseen images.")
        closeness[name] = fold_means(_share_above(distance, real_distance), fold)
        authenticity[name] = fold_means(authentic, fold)
        controls[name] = real_authentic.mean().item()
        copies[name] = (distance == 0).double().mean().item()
    halves = dict.fromkeys(names, 0.5)
    result = {
        "closeness": panel_score("closeness to train", "real", closeness, held_out, halves, missing),
        "authenticity": panel_score("authenticity", "real", authenticity, held_out, controls, missing),
    }
    for score in result.values():
        score["rows"] = sizes
        for name, share in copies.items():
            score["per_encoder"][name]["copies"] = share
    return result


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
