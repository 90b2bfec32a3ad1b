"""What every metric reads: generated and real samples, already embedded, and the settings of an evaluation.

Letters: n rows, c channels, h height, w width, d features, e encoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from irdm.config import Config
from irdm.ops.rows import Rows, row_blocks
from irdm.ops.sampling import generator_for, sample_indices

MIN_ROWS = 8
"""Fewest rows of a sample that any metric accepts; hundreds are needed to mean something."""

BLOCK = 4096
"""Rows of a table that are read at once: memory, not results."""

Tables = Mapping[str, Rows]
"""A feature table [n, d] for each encoder, row by row of the same images: tensors, or stores larger than memory."""

Direction = Literal["lower", "higher", "real"]
"""What is good: a lower value, a higher one, or the value of fresh real images (both sides of it are worse)."""


class EvaluationConfig(Config):
    """How a generator is judged. The defaults suit thousands of images; the seed fixes every draw."""

    rows: int = Field(default=16384, ge=MIN_ROWS)
    """At most this many rows of a real split; a generated draw has as many as the smaller of val and test."""
    replicates: int = Field(default=8, ge=1)
    """Generated draws of matched size; their spread enters the confidence interval."""
    directions: int = Field(default=1024, ge=1)
    """Unit directions of the sliced Wasserstein distance."""
    rff_features: int = Field(default=4096, ge=1)
    """Random Fourier features of the MMD."""
    rff_seed: int = Field(default=99999, ge=0)
    """Seed of the Fourier bank; the published numbers use 99999."""
    resamples: int = Field(default=64, ge=2)
    """Real draws that measure how much a fresh real score moves; they make the 95% intervals."""
    unseen_draws: int = Field(default=8, ge=2)
    """Draws of train rows averaged in the denominator of `sw_ratio_unseen`."""
    classifier_rows: int = Field(default=10000, ge=2)
    """At most this many train images fit the classifier of `label_accuracy`."""
    quick_directions: int = Field(default=256, ge=1)
    """Unit directions of the quick check during training."""
    quick_rows: int = Field(default=2048, ge=MIN_ROWS)
    """At most this many rows of each split in the quick check."""
    gallery_per_class: int = Field(default=10, ge=1)
    """Images of a class kept for the report."""
    micro_batch: int = Field(default=1024, ge=1)
    """Images that are generated and embedded at once; changes memory, not results."""
    seed: int = Field(default=0, ge=0)
    """Seed of noise, labels, directions and subsamples."""


@dataclass(frozen=True)
class Sample:
    """Images in [0, 1], their classes, and their features by encoder, row by row."""

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    features: Mapping[str, Float[Tensor, "n _d"]]

    def __len__(self) -> int:
        return len(self.labels)

    def replicates(self, size: int) -> list[dict[str, Tensor]]:
        """The features of consecutive replicates of `size` rows. Raises ValueError unless they come out even."""
        if not len(self) or len(self) % size:
            raise ValueError(f"Got {len(self)} generated rows, expected a multiple of {size}, the rows of a real draw.")
        return [take(self.features, slice(start, start + size)) for start in range(0, len(self), size)]


@dataclass(frozen=True)
class Real:
    """The real side. `val` stands for a fresh real draw, `test` for rows that nothing was chosen on."""

    train: Sample
    val: Sample
    test: Sample
    held_out: tuple[str, ...]


def take(features: Mapping[str, Tensor], rows: Int64[Tensor, " k"] | slice) -> dict[str, Tensor]:
    """Some rows of every encoder's features."""
    return {name: table[rows if isinstance(rows, slice) else rows.to(table.device)] for name, table in features.items()}


def stratified_rows(labels: Int64[Tensor, " n"], count: int, generator: torch.Generator) -> Int64[Tensor, " count"]:
    """`count` row indices, random within a class, with every class in proportion to its frequency in `labels`.

    Systematic sampling along rows sorted by class: a class with share p gets floor(p count) or one more. The rows are
    distinct when `count <= n`. Stratified because the splits are: a draw with freely varying class counts would lie
    further from train than `val` does, and make a fresh real score look noisier than it is.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels.cpu()[shuffled].sort(stable=True).indices]
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    return order[((torch.arange(count) + start) * len(labels) / count).long().clamp(max=len(labels) - 1)]


def checked(features: Mapping[str, Tensor], dims: Mapping[str, int]) -> dict[str, Tensor]:
    """The features of exactly the encoders in `dims`, each finite and of its width.

    Raises ValueError naming a missing encoder (a mean over fewer would still look like a score), one of another width,
    one with NaN or infinity, or too few rows.
    """
    for name, dim in dims.items():
        if name not in features:
            raise ValueError(
                f"Encoder '{name}' has no features; found {sorted(features)}. Embed with the whole battery."
            )
        shape = tuple(features[name].shape)
        if len(shape) != 2 or shape[1] != dim or shape[0] < MIN_ROWS:
            raise ValueError(f"Encoder '{name}': features {shape}, expected at least {MIN_ROWS} rows of {dim} numbers.")
        if bad := int((~features[name].isfinite()).any(1).sum()):
            raise ValueError(f"Encoder '{name}': {bad} of {shape[0]} rows of features hold NaN or infinity.")
    return {name: features[name] for name in dims}


def panel(wanted: Sequence[str], found: Tables, partial: bool) -> tuple[list[str], list[str]]:
    """The wanted encoders that have a table, and those that have none, in the order of `wanted`.

    Raises ValueError when one is missing and the caller did not ask for a partial panel (a mean over fewer encoders
    would still look like a score), when none is there, or when the tables differ in rows.
    """
    missing = [name for name in wanted if name not in found]
    if missing and (not partial or len(missing) == len(wanted)):
        raise ValueError(
            f"The encoders {missing} have no features; found {sorted(found)}. Embed the images with the whole panel of "
            "the reference, or ask for a partial panel, which the result then names."
        )
    names = [name for name in wanted if name in found]
    if len({len(found[name]) for name in names}) > 1:
        sizes = {name: len(found[name]) for name in names}
        raise ValueError(f"The encoders have tables of {sizes} rows; embed the same images with all of them.")
    return names, missing


class Picked:
    """Some rows of a table, read when they are asked for: `Rows` of the given indices, in their order."""

    def __init__(self, table: Rows, index: Int64[Tensor, " k"]) -> None:
        self._table, self._index = table, index
        self.shape = (len(index), *table.shape[1:])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        return self._table[self._index[index]]


def matched(table: Rows, count: int, seed: int) -> Picked:
    """At most `count` rows of a table, drawn at random: the same of every table with as many rows."""
    return Picked(table, sample_indices(len(table), count, generator_for("metrics", "matched", seed)).sort().values)


def check_table(name: str, table: Rows, dim: int | None = None) -> None:
    """Raises ValueError naming the encoder unless the table is [n >= 8, dim] (any width for None)."""
    if len(table.shape) != 2 or len(table) < MIN_ROWS or (dim is not None and table.shape[1] != dim):
        raise ValueError(
            f"Encoder '{name}': features {tuple(table.shape)}, expected [n >= {MIN_ROWS}, {dim or 'd'}]: embed more "
            "images, and all of them with the encoder of the reference."
        )


def finite_blocks(name: str, table: Rows, block: int = BLOCK) -> Iterator[Tensor]:
    """The rows of an encoder's table in order, at most `block` at a time: [<=block, d].

    Raises ValueError naming the encoder for NaN or infinity.
    """
    for rows in row_blocks(table, block):
        if bad := int((~rows.isfinite()).any(1).sum()):
            raise ValueError(
                f"Encoder '{name}': {bad} rows of features hold NaN or infinity; find the image or the precision that "
                "makes them, and embed again."
            )
        yield rows
