"""What every metric is: a function of two tables and the settings; and the one law by which all of them draw rows.

Letters: n rows, k rows of a draw, d features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor

from irdm.conditions import Conditions, Unconditional, draws, proportioned
from irdm.config import Config, free
from irdm.metrics.score import Score
from irdm.metrics.tables import Real, Table
from irdm.ops.rows import row_blocks

MIN_ROWS = 8
"""Fewest rows that any metric accepts; hundreds are needed to mean something."""

BLOCK = 4096
"""Rows of a table that are read at once: memory, not results."""


class EvaluationConfig(Config):
    """How images are judged. The defaults are those of the published protocol (arXiv 2607.02375)."""

    rows: int = Field(default=16384, ge=MIN_ROWS, le=2**31)
    """Rows of a draw of the ratios; fewer where there are fewer generated, train or half as many val rows."""
    directions: int = Field(default=1024, ge=1, le=2**20)
    """Unit directions of the sliced Wasserstein distance."""
    rff_features: int = Field(default=4096, ge=1, le=2**24)
    """Random Fourier features of the MMD."""
    rff_seed: int = Field(default=99999, ge=0, lt=2**63)
    """Seed of the random Fourier features."""
    resamples: int = Field(default=64, ge=2, le=2**20)
    """Real draws that measure how much a fresh real score moves; they make the 95% intervals of ratios."""
    table_rows: int = Field(default=50_000, ge=64, le=2**31)
    """At most this many rows of train and of val are kept in memory; a reference on disk has its own number."""
    manifold_rows: int = Field(default=10_000, ge=64, le=2**31)
    """At most this many rows of a side in precision, recall, density, coverage and label accuracy."""
    neighbours: int = Field(default=5, ge=1, le=2**16)
    """The neighbour that is a ball's radius in precision and the like, and the neighbours that vote on a label."""
    draws: int = Field(default=4, ge=1, le=2**16)
    """A run is judged on this many disjoint draws of generated images."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of noise, conditions, directions and every draw of rows."""
    micro_batch: int = free(256, ge=1)
    """Images that are generated and embedded at once."""
    quick_rows: int = free(2048, ge=MIN_ROWS, le=2**31)
    """At most this many rows of a side in the quick check during training."""
    quick_directions: int = free(256, ge=1)
    """Unit directions of the quick check."""
    ladder: int = free(1000, ge=0)
    """At most this many held-out images, and a third of them, are damaged to measure what the scores see; 0: none."""
    gallery: int = free(10, ge=1)
    """Images of a class that are kept for the report."""


@runtime_checkable
class Metric(Protocol):
    """One or more scores of the judged images, by name. `irdm.metrics.METRICS` is the table of them.

    Both tables hold the same encoders and have passed `check_tables`.
    """

    def __call__(self, generated: Table, real: Real, config: EvaluationConfig, /) -> dict[str, Score]: ...


def check_tables(generated: Table, real: Real) -> None:
    """Read every table once, before anything is computed.

    Raises ValueError naming the encoder for too few rows, other widths, rows without a condition, NaN or infinity.
    """
    for name in real.encoders:
        dim = real.train.features[name].shape[-1]
        for side, table in (("judged", generated), ("train", real.train), ("val", real.val)):
            rows = table.features[name]
            shape = tuple(rows.shape)
            if len(shape) != 2 or shape[1] != dim or not MIN_ROWS <= shape[0] == len(table):
                raise ValueError(
                    f"Encoder '{name}': features {shape} of {len(table)} {side} images, expected a row an image, at "
                    f"least {MIN_ROWS} of {dim} numbers. Embed all images with the encoders of the reference."
                )
            if bad := sum(int((~block.isfinite()).any(1).sum()) for block in row_blocks(rows, BLOCK)):
                raise ValueError(
                    f"Encoder '{name}': {bad} of {len(rows)} {side} rows of features hold NaN or infinity; find the "
                    "image or the precision that makes them, and embed again."
                )


KEPT = 0.25  # val of other proportions, which would lose more of its rows than this leaves, is drawn from as it is

Law = Literal["stratified", "random"]
"""How rows are drawn: every class in proportion, or all rows alike."""


@dataclass(frozen=True)
class Pool:
    """Rows of a table that are drawn from."""

    table: Table
    rows: Int64[Tensor, " n"]
    conditions: Conditions
    """Of these rows, as far as draws hold them in proportion."""

    def __len__(self) -> int:
        return len(self.rows)

    def draws(self, count: int, times: int, *keys: int | str) -> Int64[Tensor, "times count"]:
        """Row numbers of the table of several draws, by `irdm.conditions.draws`."""
        return self.rows[draws(self.conditions, count, times, *keys)]

    def sample(self, most: int, *keys: int | str) -> Int64[Tensor, " k"]:
        """Row numbers of one draw of at most `most`, in the order of the table, so that a store is read forwards."""
        return self.rows if most >= len(self) else self.draws(most, 1, *keys)[0].sort().values

    def halves(self, *keys: int | str) -> tuple[Pool, Pool]:
        """Two disjoint draws of half of the rows."""
        one, two = draws(self.conditions, len(self) // 2, 2, "halves", *keys)
        return (
            Pool(self.table, self.rows[one], self.conditions[one]),
            Pool(self.table, self.rows[two], self.conditions[two]),
        )


@dataclass(frozen=True)
class Pools:
    """Both sides of an evaluation under one law of draws.

    Real images must be drawn as the judged ones are, or a perfect generator would not score 1. Judged images that have
    the classes of train in its proportions (to the rounding of a draw) were drawn stratified, and so is everything:
    classes in proportion, of val only the rows that have the proportions of train. Others, such as a folder without
    classes, are compared with rows drawn all alike, so that a wrong share of a class counts against them.
    """

    law: Law
    generated: Pool
    train: Pool
    val: Pool

    @classmethod
    def of(cls, generated: Table, real: Real) -> Pools:
        """Decide the law."""
        tables = (generated, real.train, real.val)
        wanted = real.train.conditions
        if wanted.strata is not None and all(t.conditions.spec == wanted.spec for t in tables):
            kept = [proportioned(table.conditions, like=wanted) for table in tables]
            if len(kept[0]) == len(generated) and len(kept[2]) >= KEPT * len(real.val):
                pools = (Pool(t, rows, t.conditions[rows]) for t, rows in zip(tables, kept, strict=True))
                return cls("stratified", *pools)
        return cls("random", *(Pool(t, torch.arange(len(t)), Unconditional(len(t))) for t in tables))
