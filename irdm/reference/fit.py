"""Features of real data -> one fitted distance per encoder, and its floor: what real data that is not in it scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from irdm.conditions import Conditions, draw, proportioned
from irdm.distances import Distance, DistanceConfig, Joint, is_joint
from irdm.distances.finite import expected_at
from irdm.distances.kernel import MMD
from irdm.distributed import ALONE, Ranks
from irdm.ops.rows import Rows
from irdm.progress import Say, silent

FLOOR_DRAWS = 8
MIN_FLOOR_ROWS = 32


@dataclass(frozen=True)
class Reference:
    """`distances` {encoder: fitted on train} and `floors` {encoder: the distance of held-out real rows, or None}."""

    distances: dict[str, Distance[Any]]
    floors: dict[str, float | None]


def fit_reference(
    config: DistanceConfig,
    train: Mapping[str, Rows],
    val: Mapping[str, Rows],
    conditions: tuple[Conditions, Conditions],
    *,
    joint: Joint,
    rollout: int,
    seed: int,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    progress: Say = silent,
) -> Reference:
    """`fit_distance` for every encoder of train and val {encoder: rows}."""
    distances, floors = {}, {}
    if (kept := len(proportioned(conditions[1], conditions[0]))) < len(conditions[1]):
        progress(f"floors: {kept} of {len(conditions[1])} held-out rows, in the proportions of the training classes")
    for name, rows in train.items():
        distances[name], floors[name] = fit_distance(
            config,
            rows,
            val[name],
            conditions,
            joint=is_joint(joint, name),
            rollout=rollout,
            seed=seed,
            device=device,
            ranks=ranks,
            progress=lambda text, name=name: progress(f"{name}: {text}"),
        )
        floor = floors[name]
        progress(
            f"{name}: {len(rows)} real rows fitted, floor {'not known' if floor is None else format(floor, '.3g')}"
        )
    return Reference(distances, floors)


def fit_distance(
    config: DistanceConfig,
    train: Rows,
    val: Rows,
    conditions: tuple[Conditions, Conditions],
    *,
    joint: bool,
    rollout: int,
    seed: int,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    progress: Say = silent,
) -> tuple[Distance[Any], float | None]:
    """The distance fitted, streaming, on train rows [n, d] of one encoder, and its `floor_of` val rows [m, d].

    `conditions` are those of train [n] and of val [m]; joint matching sees their tau. `ranks` all have these rows and
    share the work; what they find is one process's, to rounding.

    Raises:
        ValueError: when rows and conditions do not match, the rows cannot be fitted, or too few are held out.
    """
    if (len(train), len(val)) != (len(conditions[0]), len(conditions[1])):
        raise ValueError(
            f"Got {len(train)} training and {len(val)} held-out rows with {len(conditions[0])} and "
            f"{len(conditions[1])} conditions; expected one condition a row."
        )
    distance = config.build().to(device)
    distance.fit(train, conditions[0].tau if joint else None, seed=seed, ranks=ranks, progress=progress)
    return distance, floor_of(distance, val, conditions, joint=joint, rollout=rollout, seed=seed, ranks=ranks)


@torch.no_grad()
def floor_of(
    distance: Distance[Any],
    val: Rows,
    conditions: tuple[Conditions, Conditions],
    *,
    joint: bool,
    rollout: int,
    seed: int,
    ranks: Ranks = ALONE,
) -> float | None:
    """The expected distance of `rollout` real rows that were not fitted, their conditions drawn as training draws them.

    From n held-out rows with the proportions of the training conditions: the mean over 8 draws (arXiv 2607.02375) while
    rollout <= n, an exact MMD's over all steps as well. Beyond that an MMD's is told from all n rows (`irdm.distances.
    finite`), and another distance's is not known: None. Drawing with replacement would count duplicates as repulsion.

    Raises:
        ValueError: for n < 32, or when most of the n rows are alone in their class and rollout > n.
    """
    kept = proportioned(conditions[1], conditions[0])
    held_out, n = conditions[1][kept], len(kept)
    if n < MIN_FLOOR_ROWS:
        raise ValueError(
            f"Found {n} held-out real rows in the proportions of the training data (of {len(val)} held out), expected "
            f"at least {MIN_FLOOR_ROWS}: what real data scores cannot be told from so few. Hold out more images."
        )
    tau, device = held_out.tau if joint else None, distance.center.device

    linear = isinstance(distance, MMD)  # in the real batch of a step, whose mean is then the whole pool

    def picked(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return val[kept[rows]].to(device), None if tau is None else tau[rows].to(device)

    if rollout <= n:
        draws = [picked(draw(held_out, rollout, "floor", seed, k)) for k in range(FLOOR_DRAWS)]
        steps = [None if linear else k for k in range(FLOOR_DRAWS)]
        found = [distance(*rows, step=k, ranks=ranks).item() for k, rows in zip(steps, draws, strict=True)]
        return sum(found) / FLOOR_DRAWS
    return expected_at(distance, *picked(torch.arange(n)), held_out.strata, rollout, ranks) if linear else None


def floor_is_known(config: DistanceConfig, *, rollout: int, held_out: int) -> bool:
    """Whether `floor_of` can tell the floor from so many held-out rows."""
    return rollout <= held_out or isinstance(config.build(), MMD)


def floors_or_error(floors: Mapping[str, float | None], *, held_out: int, rollout: int) -> dict[str, float]:
    """The floors, when all are known, as the gated controller needs them.

    Raises ValueError that names the encoders whose floor is not, and the ways out.
    """
    if unknown := sorted(name for name, floor in floors.items() if floor is None):
        raise ValueError(
            f"The gated controller compares each score with what real data scores, which is not known for "
            f"{', '.join(unknown)}: the rollout is {rollout} and only {held_out} real images are held out, which tells "
            f"enough of an MMD alone. Lower the rollout to {held_out}, hold out more images, take an MMD as the "
            "distance, or set --controller.kind uniform."
        )
    return {name: floor for name, floor in floors.items() if floor is not None}
