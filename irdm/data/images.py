"""Your own pictures, in folders or archives: colour, one size, classes from folders, read when they are needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from irdm.data.base import Dataset, Split, SplitConfig, split_rows
from irdm.data.decode import PREPROCESSING
from irdm.data.sources import ImageSource, in_threads, open_source
from irdm.ops.sampling import generator_for


class Pictures(Split):
    """Rows of a source, read when they are asked for: a million pictures cost no memory until then."""

    def __init__(self, source: ImageSource, rows: Int64[Tensor, " n"], size: int):
        self.source, self.rows, self.size = source, rows, size
        self.labels = source.labels[rows]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, size, size); nothing is read."""
        return 3, self.size, self.size

    @cached_property
    def images(self) -> Float32[Tensor, "n 3 size size"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All of them, kept from then on: 12 KB a picture at 32 x 32, 786 KB at 256 x 256.

        Raises ValueError naming every picture of the source that cannot be used, or when they are more than the memory
        of this machine.
        """
        needed, there = 4 * len(self) * torch.Size(self.image_shape).numel(), physical_memory()
        if needed > there:
            raise ValueError(
                f"The {len(self)} pictures of {self.source.path} would fill {needed / 2**30:.0f} GiB, and this machine "
                f"has {there / 2**30:.0f}. Use fewer with --data.limit or smaller ones with --data.size; or train with "
                "--battery.kind panel against a reference on disk, --reference, which needs none of them."
            )
        return self._decoded(self.rows)

    def take(self, rows: Int64[Tensor, " k"]) -> Split:
        """Some rows, in memory; only they are read. Raises ValueError as `images` does."""
        return Split(self._decoded(self.rows[rows]), self.labels[rows])

    def content(self) -> Iterator[bytes]:
        """The sha256 of every file in order, with its label, and how it becomes pixels; the files are not decoded."""
        yield f"{PREPROCESSING} {self.size} {len(self)} ".encode()
        yield from in_threads(lambda row: _sha256(self.source.read(row)), self.rows.tolist())
        yield self.labels.numpy().tobytes()

    def _decoded(self, rows: Int64[Tensor, " k"]) -> Float32[Tensor, "k 3 size size"]:
        images = torch.empty(len(rows), *self.image_shape)
        for image, pixels in zip(images, self.source.decoded(rows.tolist(), self.size), strict=True):
            torch.div(pixels, 255, out=image)
        return images


class ImagesConfig(SplitConfig):
    """Pictures from one place that is split here, or from a place each for training and for held-out pictures.

    A place is what `irdm.data.sources.open_source` opens: a folder (of one folder a class), a zip, tars, an .npz.
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
        """The splits, their rows shuffled; images will be [n, 3, size, size] in [0, 1]. No picture is read yet.

        Raises ValueError for a place that cannot be read, classes that differ between the places, or a class too small
        to split.
        """
        if self.path is not None:
            source, kept = self._open(self.path)
            chosen = split_rows(self.path.stem, source.labels[kept], source.class_names, self)
            return self._dataset(self.path.stem, {name: (source, kept[rows]) for name, rows in chosen.items()})
        assert self.train is not None and self.val is not None
        places = {"train": self.train, "val": self.val} | ({"test": self.test} if self.test else {})
        parts = {}
        for name, path in places.items():
            source, kept = self._open(path)
            parts[name] = (
                source,
                kept[torch.randperm(len(kept), generator=generator_for("rows", name, self.split_seed))],
            )
            if odd := sorted(set(source.class_names) ^ set(parts["train"][0].class_names)):
                raise ValueError(
                    f"{path} has {len(source.class_names)} classes and {self.train} has "
                    f"{len(parts['train'][0].class_names)}; {odd[:5]} are in one of the two alone. Give both the same "
                    "class folders."
                )
        if self.test is None:
            parts |= self._halved(*parts["val"])
        return self._dataset(self.train.name, parts)

    def _dataset(self, name: str, parts: Mapping[str, tuple[ImageSource, Tensor]]) -> Dataset:
        splits = {part: Pictures(source, rows, self.size) for part, (source, rows) in parts.items()}
        names = parts["train"][0].class_names
        return Dataset(name, **splits, num_classes=len(names), class_names=names)

    def _open(self, path: Path) -> tuple[ImageSource, Int64[Tensor, " k"]]:
        """A place, and the numbers of the pictures that `limit` leaves, in order."""
        source = open_source(path)
        if self.limit is None or self.limit >= len(source):
            return source, torch.arange(len(source))
        order = _by_class(source.labels, generator_for("limit", self.split_seed))
        return source, order[torch.arange(self.limit) * len(source) // self.limit].sort().values

    def _halved(self, source: ImageSource, rows: Int64[Tensor, " n"]) -> dict[str, tuple[ImageSource, Tensor]]:
        if len(rows) < 2:
            raise ValueError(f"{self.val} holds {len(rows)} picture; expected at least 2, for val and test. Add some.")
        order = _by_class(source.labels[rows], generator_for("halves", self.split_seed))
        return {"val": (source, rows[order[0::2].sort().values]), "test": (source, rows[order[1::2].sort().values])}


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _sha256(content: bytes | NDArray) -> bytes:
    """Of a file's bytes, or of pixels and their shape."""
    return hashlib.sha256(
        content if isinstance(content, bytes) else repr(content.shape).encode() + content.tobytes()
    ).digest()


def _by_class(labels: Int64[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, " n"]:
    """Row numbers sorted by class and random within one: any regular comb through them holds the classes' shares."""
    shuffled = torch.randperm(len(labels), generator=generator)
    return shuffled[labels[shuffled].sort(stable=True).indices]
