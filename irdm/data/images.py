"""Your own pictures, in folders or archives, as a dataset in memory: colour, one size, classes from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float32, Int64
from pydantic import Field, model_validator
from torch import Tensor

from irdm.data.base import Dataset, Split, SplitConfig, dataset_of, split_dataset
from irdm.data.sources import open_source
from irdm.ops.sampling import generator_for


class ImagesConfig(SplitConfig):
    """Pictures from one place that is split here, or from a place each for training and for held-out pictures.

    A place is what `irdm.data.sources.open_source` opens: a folder (of one folder a class), a zip, tars, an .npz. Every
    picture is held in memory as float32: 12 KB at 32 x 32, 786 KB at 256 x 256.
    """

    kind: Literal["images"] = "images"
    """Name of this kind of dataset."""
    path: Path | None = None
    """The pictures, to be split by val_fraction and test_fraction."""
    train: Path | None = None
    """Training pictures, in place of `path`."""
    val: Path | None = None
    """Held-out pictures, beside `train`."""
    test: Path | None = None
    """Pictures that only the last evaluation sees, beside `train`; unset, every second one of `val`, class by class."""
    size: int = Field(default=32, ge=4)
    """Height and width in pixels: the centre square is cropped and resized."""
    limit: int | None = Field(default=None, ge=3)
    """At most this many pictures from each place, drawn by `split_seed` with the classes in proportion."""

    @model_validator(mode="after")
    def _places(self) -> ImagesConfig:
        separate = self.train is not None and self.val is not None
        if (self.path is None) != separate or (self.path and (self.train or self.val or self.test)):
            given = [name for name in ("path", "train", "val", "test") if getattr(self, name) is not None]
            raise ValueError(f"images need either path, or train and val (and perhaps test); given: {given or 'none'}.")
        return self

    def build(self) -> Dataset:
        """Read, crop, convert to [n, 3, size, size] in [0, 1], split. The rows of every split are shuffled.

        Raises ValueError for a place or picture that cannot be read, classes that differ between the places, or a class
        too small to split.
        """
        if self.path is not None:
            return split_dataset(self.path.stem, *self._load(self.path), self)
        assert self.train is not None and self.val is not None
        images, labels, class_names = self._load(self.train)
        splits = {"train": self._shuffled(images, labels, "train")}
        held_out = {"val": self.val} if self.test is None else {"val": self.val, "test": self.test}
        for name, path in held_out.items():
            images, labels, found = self._load(path)
            if found != class_names:
                odd = sorted(set(found) ^ set(class_names))
                raise ValueError(
                    f"{path} has {len(found)} classes and {self.train} has {len(class_names)}; {odd[:5]} are in one of "
                    "the two alone. Give both the same class folders."
                )
            splits[name] = self._shuffled(images, labels, name)
        if self.test is None:
            splits |= self._halved(splits["val"])
        return dataset_of(self.train.name, splits, class_names)

    def _load(self, path: Path) -> tuple[Float32[Tensor, "n 3 size size"], Int64[Tensor, " n"], tuple[str, ...]]:
        source = open_source(path)
        rows = torch.arange(len(source))
        if self.limit is not None and self.limit < len(source):
            order = _by_class(source.labels, generator_for("limit", self.split_seed))
            rows = order[torch.arange(self.limit) * len(source) // self.limit].sort().values
        images = torch.empty(len(rows), 3, self.size, self.size)
        for image, pixels in zip(images, source.decoded(rows.tolist(), self.size), strict=True):
            torch.div(pixels, 255, out=image)
        return images, source.labels[rows], source.class_names

    def _shuffled(self, images: Tensor, labels: Tensor, name: str) -> Split:
        rows = torch.randperm(len(labels), generator=generator_for("rows", name, self.split_seed))
        return Split(images[rows], labels[rows])

    def _halved(self, split: Split) -> dict[str, Split]:
        if len(split) < 2:
            raise ValueError(f"{self.val} holds {len(split)} picture; expected at least 2, for val and test. Add some.")
        order = _by_class(split.labels, generator_for("halves", self.split_seed))
        halves = {"val": order[0::2].sort().values, "test": order[1::2].sort().values}
        return {name: Split(split.images[rows], split.labels[rows]) for name, rows in halves.items()}


def _by_class(labels: Int64[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, " n"]:
    """Row numbers sorted by class and random within one: any regular comb through them holds the classes' shares."""
    shuffled = torch.randperm(len(labels), generator=generator)
    return shuffled[labels[shuffled].sort(stable=True).indices]
