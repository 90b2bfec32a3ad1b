"""What every dataset is: three stratified splits of labelled images, and a fingerprint of their content.

Letters: n rows, c channels, h height, w width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float32, Int64
from pydantic import Field
from torch import Tensor

from irdm.config import Config


class Split:
    """Labelled images: `images` float32 [n, c, h, w] in [0, 1], `labels` int64 [n]. The order of rows is random.

    `image_shape`, `labels`, `len` and `take` are cheap whatever the size; `images` is all of them, in memory.
    """

    images: Float32[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]

    def __init__(self, images: Float32[Tensor, "n c h w"], labels: Int64[Tensor, " n"]):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, c, h, w = self.images.shape
        return c, h, w

    def take(self, rows: Int64[Tensor, " k"]) -> Split:
        """Some rows, in memory."""
        return Split(self.images[rows], self.labels[rows])

    def content(self) -> Iterator[bytes]:
        """What a fingerprint is made of: every image and label, in order."""
        for tensor in (self.images, self.labels):
            yield f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
            yield tensor.numpy().tobytes()


@dataclass(frozen=True)
class Dataset:
    """Three splits with the same classes."""

    name: str
    train: Split
    val: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.train.image_shape

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of every image and label of train, val and test, in order; reads all of them once."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            for piece in part.content():
                digest.update(piece)
        return digest.hexdigest()


class SplitConfig(Config):
    """How the rows of a dataset are divided: once, stratified by class, seeded."""

    val_fraction: float = Field(default=1 / 6, gt=0, lt=0.5)
    """Share of each class that sets the floors and stands for "fresh real" in the scores."""
    test_fraction: float = Field(default=1 / 6, gt=0, lt=0.5)
    """Share of each class that nothing but the last evaluation sees."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the split and of the row order inside each part."""


def split_dataset(
    name: str,
    images: Float32[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    class_names: tuple[str, ...],
    config: SplitConfig,
) -> Dataset:
    """Divide labelled images by `split_rows`. Raises ValueError as it does."""
    rows = split_rows(name, labels, class_names, config)
    splits = {part: Split(images[chosen].contiguous(), labels[chosen].contiguous()) for part, chosen in rows.items()}
    return Dataset(name, **splits, num_classes=len(class_names), class_names=class_names)


def split_rows(
    name: str, labels: Int64[Tensor, " n"], class_names: tuple[str, ...], config: SplitConfig
) -> dict[str, Int64[Tensor, " k"]]:
    """Shuffled row numbers of train, val and test, each with every class in the same proportion.

    Raises ValueError when a class has too few rows to appear in all three.
    """
    generator = torch.Generator().manual_seed(config.split_seed)
    parts: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}
    for label, class_name in enumerate(class_names):
        rows = (labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        n_val, n_test = round(len(rows) * config.val_fraction), round(len(rows) * config.test_fraction)
        sizes = {"train": len(rows) - n_val - n_test, "val": n_val, "test": n_test}
        if min(sizes.values()) < 1:
            raise ValueError(
                f"{name}: class {label} ({class_name}) has {len(rows)} row(s), which splits into {sizes}; every class "
                "needs at least one row in each. Add images, drop the class, or raise val_fraction and test_fraction."
            )
        for part, chunk in zip(parts.values(), rows.split(list(sizes.values())), strict=True):
            part.append(chunk)
    splits = {}
    for part, chunks in parts.items():
        rows = torch.cat(chunks)
        splits[part] = rows[torch.randperm(len(rows), generator=generator)]
    return splits
