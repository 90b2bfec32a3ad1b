"""Features of real data -> one fitted distance per encoder, and the floor that real data itself reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irdm.data import Dataset
from irdm.distances import AnyDistance, Distance
from irdm.features import extract
from irdm.ops.sampling import generator_for

FLOOR_DRAWS = 8


@dataclass(frozen=True)
class Reference:
    """`distances` {encoder: fitted on train} and `floors` {encoder: the distance of held-out real rows}."""

    distances: dict[str, Distance]
    floors: dict[str, float]


def embed_labels(labels: Tensor, num_classes: int) -> Tensor:
    """tau of a class: its one-hot row. labels [n] -> float32 [n, num_classes]."""
    return nn.functional.one_hot(labels, num_classes).float()


def build_reference(
    config: AnyDistance,
    encoders: Mapping[str, nn.Module],
    dataset: Dataset,
    *,
    joint: bool,
    rollout: int,
    seed: int,
    device: str = "cpu",
    micro_batch: int = 1024,
) -> Reference:
    """Fit a distance for each encoder on the train split, and measure its floor on the val split.

    A floor is the mean distance over 8 seeded draws of `rollout` held-out rows (with replacement when there are fewer
    rows than that): what data that is real, and not the training data, scores at the batch size of training.
    """
    train, val = (
        (extract(encoders, split.images.to(device), micro_batch), embed_labels(split.labels, dataset.num_classes).to(device))
        for split in (dataset.train, dataset.val)
    )
    distances, floors = {}, {}
    for name in encoders:
        distance = config.build().to(device)
        distance.fit(train[0][name], train[1] if joint else None, seed=seed)
        values = []
        for draw in range(FLOOR_DRAWS):
            rows = _draw(len(dataset.val), rollout, generator_for("floor", seed, draw)).to(device)
            tau = val[1][rows] if joint else None
            with torch.no_grad():
                values.append(distance(val[0][name][rows], tau, step=draw).item())
        distances[name], floors[name] = distance, sum(values) / len(values)
    return Reference(distances, floors)


def _draw(population: int, count: int, generator: torch.Generator) -> Tensor:
    if count <= population:
        return torch.randperm(population, generator=generator)[:count]
    return torch.randint(population, (count,), generator=generator)
