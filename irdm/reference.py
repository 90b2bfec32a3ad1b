"""Features of real data -> one fitted distance per encoder, and the floor that real data itself reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irdm.data import Dataset
from irdm.distances import AnyDistance, Distance
from irdm.features import extract
from irdm.ops.rows import Rows
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


class LabelRows:
    """tau of labels [n] as `irdm.ops.rows.Rows`: one-hot rows [n, num_classes], made as they are asked for."""

    def __init__(self, labels: Tensor, num_classes: int):
        self._labels = labels
        self.shape = (len(labels), num_classes)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        return embed_labels(self._labels[index], self.shape[1])


def fit_distance(
    config: AnyDistance,
    train: Rows,
    val: Rows,
    labels: tuple[Tensor, Tensor],
    num_classes: int,
    *,
    joint: bool,
    rollout: int,
    seed: int,
    device: str = "cpu",
) -> tuple[Distance, float]:
    """The distance fitted, streaming, on train rows [n, d] of one encoder, and its floor on val rows [m, d].

    `labels` are those of train [n] and of val [m]. A floor is what data that is real, and not the training data, scores
    at the batch size of training: the mean over 8 seeded draws of `rollout` held-out rows. With fewer held-out rows
    than that it is extrapolated (`held_out_floor`).
    """
    distance = config.build().to(device)
    distance.fit(train, LabelRows(labels[0], num_classes) if joint else None, seed=seed)
    held_out, tau = val[0 : len(val)].to(device), embed_labels(labels[1], num_classes).to(device)
    return distance, held_out_floor(distance, held_out, tau, rollout, joint=joint, seed=seed)


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
    """`fit_distance` for each encoder, on the train and val splits of a dataset in memory."""
    splits = (dataset.train, dataset.val)
    train, val = (extract(encoders, split.images.to(device), micro_batch) for split in splits)
    labels = (dataset.train.labels, dataset.val.labels)
    distances, floors = {}, {}
    for name in encoders:
        distances[name], floors[name] = fit_distance(
            config,
            train[name],
            val[name],
            labels,
            dataset.num_classes,
            joint=joint,
            rollout=rollout,
            seed=seed,
            device=device,
        )
    return Reference(distances, floors)


@torch.no_grad()
def held_out_floor(distance: Distance, real: Tensor, tau: Tensor, rollout: int, *, joint: bool, seed: int) -> float:
    """The expected distance of `rollout` fresh real rows, from held-out features [n, d] and conditions tau [n, c].

    With n >= rollout: the mean over 8 draws. With fewer, the excess of a finite sample falls as a + b / n (exactly so
    for every MMD with a biased repulsion), so a and b are read off all n rows and off their halves, split at random
    within each class, and the floor is a + b / rollout. Drawing with replacement instead would count duplicates
    as repulsion.
    """
    n, full, half = len(real), [], []
    direction = torch.randn(real.shape[1], dtype=torch.float64, generator=generator_for("order")).to(real.device)
    canonical = (real.double() @ direction).argsort()  # draws follow the content of the rows, not the order of a file
    real, tau = real[canonical], tau[canonical]
    for draw in range(FLOOR_DRAWS):
        rows = torch.randperm(n, generator=generator_for("floor", seed, draw)).to(real.device)
        score = lambda rows, draw=draw: distance(real[rows], tau[rows] if joint else None, step=draw).item()  # noqa: E731
        if n >= rollout:
            full.append(score(rows[:rollout]))
        else:
            rows = rows[tau[rows].argmax(1).sort(stable=True).indices]
            full.append(score(rows))
            half.append((score(rows[0::2]) + score(rows[1::2])) / 2)
    floor = sum(full) / len(full)
    if half:
        slope = (sum(half) / len(half) - floor) / (2 / n - 1 / n)
        floor += slope * (1 / rollout - 1 / n)
    return floor
