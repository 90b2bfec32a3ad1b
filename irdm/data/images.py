"""Your own pictures, in folders or archives: of one size, classes from folders, read when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float32, Int64
from pydantic import Field, model_validator
from torch import Tensor

from irdm.data.base import Dataset, Shape, Split, SplitConfig, split_rows, unshared
from irdm.data.decode import PREPROCESSING
from irdm.data.image_source import ImageSource, printable
from irdm.data.sources import open_source
from irdm.memory import physical_memory
from irdm.ops.sampling import generator_for
from irdm.progress import Say

MOST_SIZES = 4  # in one message


class Pictures(Split):
    """Rows of a source at one shape [c, h, w], read when they are asked for: a million cost no memory until then."""

    def __init__(self, source: ImageSource, rows: Int64[Tensor, " n"], image_shape: Shape):
        self.source, self.rows, self.image_shape = source, rows, image_shape
        self.name, self.conditions = printable(str(source.path)), source.conditions[rows]

    @cached_property
    def resized(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """None when every image has the height and width of `image_shape` already; looks no further than the first."""
        _, height, width = self.image_shape
        own = ((found.height, found.width) for found in self.source.headers(self.rows.tolist()))
        return None if all(size == (height, width) for size in own) else f"resized to {width} x {height}"

    def read(self, rows: Int64[Tensor, " k"]) -> Float32[Tensor, "k c h w"]:
        """Some images, decoded by threads. Raises ValueError naming every image here that cannot be used."""
        channels, height, width = self.image_shape
        images = torch.empty(len(rows), channels, height, width)
        wanted = self.source.decoded(self.rows[rows].tolist(), (height, width), channels, among=self.rows.tolist())
        for image, pixels in zip(images, wanted, strict=True):
            torch.div(pixels, 255, out=image)
        return images

    @cached_property
    def images(self) -> Float32[Tensor, "n c h w"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All of them, kept from then on: 12 KB a colour picture at 32 x 32, 786 KB at 256 x 256.

        Raises ValueError as `read` does, or when they are more than the memory of this machine.
        """
        needed, there = 4 * len(self) * torch.Size(self.image_shape).numel(), physical_memory()
        if needed > there:
            raise ValueError(
                f"The {len(self)} pictures of {self.name} would fill {needed / 2**30:.0f} GiB, and this machine "
                f"has {there / 2**30:.0f}. Use fewer with --data.limit or smaller ones with --data.size; or train with "
                "--battery.kind panel against a reference on disk, --reference, which needs none of them."
            )
        return self.read(torch.arange(len(self)))

    def only(self, rows: Int64[Tensor, " k"]) -> Pictures:
        """Some of the images."""
        return Pictures(self.source, self.rows[rows], self.image_shape)

    def called(self, rows: Iterable[int]) -> list[str]:
        """The places of some images."""
        return [self.source.where(int(self.rows[row])) for row in rows]

    def look(self, progress: Say | None = None) -> None:
        """Read and decode every image once."""
        self.source.look(self.rows.tolist(), progress)

    @cached_property
    def digests(self) -> list[bytes]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """sha256 of each file, in order; none is decoded."""
        return self.source.digests(self.rows.tolist())

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """sha256 of every file's content in order, the conditions, and how a file becomes pixels; nothing is decoded.

        Where the files lie, what they are called and when they were written play no part.
        """
        head = f"{PREPROCESSING} {tuple(self.image_shape)} {self.conditions.fingerprint} "
        return hashlib.sha256(head.encode() + b"".join(self.digests)).hexdigest()


def pictures_like(source: ImageSource, image_shape: Shape, rows: Int64[Tensor, " k"] | None = None) -> Pictures:
    """All images of a source, or some rows, as those of another dataset are: its channels, its height and width."""
    return Pictures(source, torch.arange(len(source)) if rows is None else rows, image_shape)


class ImagesConfig(SplitConfig):
    """Pictures from one place that is split here, or from a place each for training and for held-out pictures.

    A place is what `irdm.data.sources.open_source` opens: a folder (of one folder a class), a zip, tars, an .npz.
    """

    kind: Literal["images"] = "images"
    """Name of this kind of dataset."""
    path: Path | None = None
    """The pictures: a folder (of one folder a class, or not), a .zip, .tar, .npz or .npy; split by val_fraction."""
    train: Path | None = None
    """Training pictures, in place of `path`."""
    val: Path | None = None
    """Held-out pictures, beside `train`."""
    size: int | None = Field(default=None, ge=4, le=4096)
    """Height and width in pixels: the centre square is cropped and resized. None: as they are, if of one size."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; None: grey when every picture is."""

    @model_validator(mode="after")
    def _places(self) -> ImagesConfig:
        separate = self.train is not None and self.val is not None
        if (self.path is None) != separate or (self.path and (self.train or self.val)):
            given = [name for name in ("path", "train", "val") if getattr(self, name) is not None]
            raise ValueError(
                f"say where the images are, by either path, or train and val; given: {', '.join(given) or 'none'}. "
                "A place is a folder, a .zip, .tar, .npz or .npy file."
            )
        return self

    def build(self) -> Dataset:
        """Train and val, their rows shuffled, of images [n, c, size, size]. None is decoded yet; with
        `drop_shared` all files are read.

        Raises ValueError for a place that cannot be read, sizes that differ, classes that differ between the places,
        numbers of classes that have no image, or a class too small to split.
        """
        if self.path is not None:
            source, name = open_source(self.path), printable(self.path.stem)
            parts = {part: (source, rows) for part, rows in split_rows(name, source.conditions, self).items()}
        else:
            assert self.train is not None and self.val is not None
            name = printable(self.train.name)
            parts = {part: self._whole(part, path) for part, path in (("train", self.train), ("val", self.val))}
            _same_classes(*(source for source, _ in parts.values()))
        sources = list(dict.fromkeys(source for source, _ in parts.values()))
        _no_class_is_empty(sources[0])
        height, width = (self.size, self.size) if self.size else own_size(sources)
        shape = (self.channels or max(source.channels for source in sources), height, width)
        splits = {part: Pictures(source, rows, shape) for part, (source, rows) in parts.items()}
        if self.drop_shared:
            splits["val"] = splits["val"].only(unshared(**splits))
        return Dataset(name, splits["train"], splits["val"])

    def _whole(self, part: str, path: Path) -> tuple[ImageSource, Int64[Tensor, " k"]]:
        """All of a place, or what `limit` leaves, in random order."""
        source = open_source(path)
        kept = self.kept(source.conditions)
        return source, kept[torch.randperm(len(kept), generator=generator_for("rows", part, self.split_seed))]


def _same_classes(train: ImageSource, val: ImageSource) -> None:
    if train.conditions.spec != val.conditions.spec:
        names = [set(source.conditions.captions()) - {""} for source in (train, val)]
        raise ValueError(
            f"{printable(str(val.path))} has {len(names[1]) or 'no'} classes and {printable(str(train.path))} has "
            f"{len(names[0]) or 'none'}; {sorted(names[0] ^ names[1])[:5]} are in one of the two alone. Give both the "
            "same class folders."
        )


def _no_class_is_empty(source: ImageSource) -> None:
    strata, classes = source.conditions.strata, source.conditions.spec.width
    if strata is not None and (found := len(strata.unique())) < classes:
        raise ValueError(
            f"{printable(str(source.path))}: labels take {found} values up to {classes - 1}; expected every number "
            "from 0 to classes - 1. Renumber them: numpy.unique(labels, return_inverse=True)[1]."
        )


def own_size(sources: Sequence[ImageSource]) -> tuple[int, int]:
    """The one height and width of all images. Raises ValueError naming the sizes when there are several."""
    sizes: dict[tuple[int, int], None] = {}
    for source in sources:
        for found in source.headers():
            sizes[found.height, found.width] = None
            if len(sizes) == MOST_SIZES:
                break
    if len(sizes) == 1 and min(size := next(iter(sizes))) >= 4:
        return size
    listed = ", ".join(f"{width} x {height}" for height, width in sizes) + (", ..." if len(sizes) == MOST_SIZES else "")
    raise ValueError(
        f"The images of {printable(str(sources[0].path))} are {listed or 'unreadable'}; expected one size, of at least "
        "4 x 4. Give a size in pixels, such as --size 32 (--data.size 32 to `irdm train`): the centre square of each "
        "is then cropped and resized to it."
    )
