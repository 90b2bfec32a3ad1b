"""The two sides of an evaluation as tables: features of the judged images, and the real side they are compared with.

Letters: n rows, k rows of an index, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from irdm.conditions import Conditions
from irdm.ops.gaussian import Moments
from irdm.ops.rows import Rows
from irdm.ops.sampling import generator_for


@dataclass(frozen=True)
class Table:
    """The features [n, d] of n images under each encoder, row by row of the same images, with their conditions.

    `Rows` are tensors, or a store on disk that is read as it is asked for.
    """

    features: Mapping[str, Rows]
    conditions: Conditions
    resized: str | None = None
    """What was done to the images before any encoder saw them (`irdm.data.base.Split.resized`); None: nothing."""
    thumbnails: Rows | None = None
    """Small pictures uint8 [n, c, h, w] of the same images (`irdm.features.thumbnails`), which no encoder made: what
    copies and duplicates are looked for in, and what people are shown. None where there are none."""

    def __len__(self) -> int:
        return len(self.conditions)

    def only(self, rows: Int64[Tensor, " k"]) -> Table:
        """Some rows, in the order of the index, read when they are asked for."""
        return self._each(lambda part: Picked(part, rows), self.conditions[rows])

    def to(self, device: torch.device) -> Table:
        """The same rows, brought to a device as they are asked for."""
        return self._each(lambda part: OnDevice(part, device), self.conditions)

    def _each(self, view: Callable[[Rows], Rows], conditions: Conditions) -> Table:
        features = {name: view(rows) for name, rows in self.features.items()}
        thumbnails = None if self.thumbnails is None else view(self.thumbnails)
        return replace(self, features=features, conditions=conditions, thumbnails=thumbnails)


@dataclass(frozen=True)
class Real:
    """Real images as an evaluation sees them, in memory or on disk: the same numbers come out of both.

    `train` are (at most `EvaluationConfig.table_rows`) images that the generator may have learned from, `val` images of
    the same kind that nothing was fitted to; their rows are in random order. `moments` are those of all train rows.
    """

    train: Table
    val: Table
    moments: Mapping[str, Moments]
    held_out: tuple[str, ...]
    """Encoders that no generator was trained against."""
    identity: Mapping[str, object]
    """What decides all of the above, as plain JSON: images, encoders, preprocessing. Part of a result's protocol."""
    remembered: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What a metric found of these tables alone, under a key of its own: a ladder judges thirty sets against them."""

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, in order."""
        return tuple(self.train.features)

    def to(self, device: torch.device) -> Real:
        """The same on a device; rows are brought there as they are asked for."""
        moments = {
            name: Moments(found.count, found.mean.to(device), found.scatter.to(device))
            for name, found in self.moments.items()
        }
        moved = replace(self, train=self.train.to(device), val=self.val.to(device), moments=moments)
        object.__setattr__(moved, "remembered", self.remembered)
        return moved


def published(name: str, generated: Table, real: Real) -> str:
    """The name of a published metric, and another where images were resized first, which its own pipeline does not do.

    "FID" is then "FID (images resized to 256 x 256)": another number, by some per cent.
    """
    resized = generated.resized or real.train.resized or real.val.resized
    return f"{name} (images {resized})" if resized else name


class Picked:
    """Some rows of a table, read when they are asked for: `Rows` of the given indices, in their order."""

    def __init__(self, rows: Rows, index: Int64[Tensor, " k"]) -> None:
        self._rows, self._index = rows, index
        self.shape = (len(index), *rows.shape[1:])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        return self._rows[self._index[index]]


class OnDevice:
    """Rows that are brought to a device as they are asked for, so that what is done with them is done there."""

    def __init__(self, rows: Rows, device: torch.device):
        self._rows, self._device = rows, device
        self.shape = rows.shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        return self._rows[index].to(self._device)


def row_order(count: int, seed: int) -> Int64[Tensor, " n"]:
    """The random order of real rows: one of every table with as many rows, in memory or in a store on disk."""
    return torch.randperm(count, generator=generator_for("store", seed))
