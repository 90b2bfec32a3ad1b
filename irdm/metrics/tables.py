"""The two sides of an evaluation as tables: features of the judged images, and the real side they are compared with.

Letters: n rows, d features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from irdm.data.conditions import Conditions
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

    def __len__(self) -> int:
        return len(self.conditions)

    def only(self, encoders: Sequence[str]) -> Table:
        """Under some of the encoders."""
        return replace(self, features={name: self.features[name] for name in encoders})


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
    asked: Conditions | None = None
    """The conditions of all train images, in whose proportions a generator is asked to draw; None: those of `train`."""

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, in order."""
        return tuple(self.train.features)

    def only(self, encoders: Sequence[str]) -> Real:
        """Under some of the encoders; the identity stays that of the whole."""
        return replace(
            self,
            train=self.train.only(encoders),
            val=self.val.only(encoders),
            moments={name: self.moments[name] for name in encoders},
            held_out=tuple(name for name in self.held_out if name in encoders),
        )


def row_order(count: int, seed: int) -> Int64[Tensor, " n"]:
    """The random order of real rows: one of every table with as many rows, in memory or in a store on disk."""
    return torch.randperm(count, generator=generator_for("store", seed))
