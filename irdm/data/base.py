"""What every dataset is: training and held-out images, each with its condition, and a fingerprint of their content.

Letters: n rows, c channels, h height, w width.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float32, Int64
from pydantic import Field
from torch import Tensor

from irdm.conditions import Classes, Conditions, Unconditional, draw
from irdm.config import Config
from irdm.progress import Say

Shape = tuple[int, int, int]
NAMED = 5  # images of one message
AT_ONCE = 2**27  # numbers of the images that are read at once: 512 MiB, 682 colour images at 256 x 256


class Split(ABC):
    """n images of one shape with their `conditions`. `len`, `image_shape` and `conditions` cost nothing to ask for."""

    name: str
    """Where the images are from, for messages."""
    conditions: Conditions
    image_shape: Shape
    resized: str | None = None
    """What was done to some image to bring it to `image_shape`, such as "resized to 256 x 256"; None: nothing."""

    def __len__(self) -> int:
        return len(self.conditions)

    @abstractmethod
    def read(self, rows: Int64[Tensor, " k"]) -> Float32[Tensor, "k c h w"]:
        """Some images, in [0, 1], in the order of the rows. Raises ValueError naming one that cannot be used."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of every image and condition, in order."""

    def at_once(self, most: int) -> int:
        """How many images to read at once: `most`, or fewer where they are so large that these would fill 512 MiB."""
        return max(1, min(most, AT_ONCE // math.prod(self.image_shape)))

    def look(self, progress: Say | None = None) -> None:  # noqa: B027 (most have nothing to look for)
        """Read every image once, of those that lie in files. Raises ValueError naming each that cannot be used."""

    def called(self, rows: Iterable[int]) -> list[str]:
        """What some images are called, for messages."""
        return [f"image {row}" for row in rows]

    @cached_property
    def digests(self) -> list[bytes]:
        """sha256 of each image, in order: what `shared` compares."""
        return [hashlib.sha256(image.numpy().tobytes()).digest() for block in self.blocks(256) for image in block]

    @cached_property
    def images(self) -> Float32[Tensor, "n c h w"]:
        """All of them, kept in memory from then on."""
        return self.read(torch.arange(len(self)))

    def blocks(self, size: int) -> Iterator[Float32[Tensor, "k c h w"]]:
        """All of them in order, at most `size` at a time."""
        for rows in torch.arange(len(self)).split(size):
            yield self.read(rows)


class TensorSplit(Split):
    """Images in memory: float32 [n, c, h, w] in [0, 1]."""

    def __init__(self, images: Float32[Tensor, "n c h w"], conditions: Conditions, name: str = "images"):
        assert len(images) == len(conditions), f"{len(images)} images, {len(conditions)} conditions"
        _, c, h, w = images.shape
        self.name, self.conditions, self.image_shape = name, conditions, (c, h, w)
        self.images = images  # type: ignore[misc]  # in place of the cached property

    def only(self, rows: Int64[Tensor, " k"]) -> TensorSplit:
        """Some of the images."""
        return TensorSplit(self.images[rows], self.conditions[rows], self.name)

    def read(self, rows: Int64[Tensor, " k"]) -> Float32[Tensor, "k c h w"]:
        return self.images[rows]

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        head = f"{self.images.dtype} {tuple(self.images.shape)} {self.conditions.fingerprint}"
        return hashlib.sha256(head.encode() + self.images.contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """`train`, which a generator learns, and `val`, real images that nothing is fitted to: floors and scores."""

    name: str
    train: Split
    val: Split
    notes: tuple[str, ...] = ()
    """What was left out or cut on the way, for people."""
    overlap: dict[str, Any] = field(default_factory=dict)
    """How many prompts of an evaluation are among the captions, by file (`irdm.data.captions.overlap`)."""

    @property
    def image_shape(self) -> Shape:
        """(channels, height, width)."""
        return self.train.image_shape

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of train and val; reads all of them once."""
        return hashlib.sha256(f"{self.train.fingerprint} {self.val.fingerprint}".encode()).hexdigest()


NATURAL = 0.01  # share of held-out images that are also training images, up to which that is a repeat as any


def shared(train: Split, val: Split) -> int:
    """How many images of `val` are also in `train`, by their content.

    Raises ValueError, with the names of some, for more than one in a hundred (and more than one): what is held out must
    show what no generator has seen, or copying passes for learning.
    """
    copies = sorted(set(range(len(val))) - set(unshared(train, val).tolist()))
    if len(copies) > max(1, NATURAL * len(val)):
        named = ", ".join(val.called(copies[:NAMED])) + (", ..." if len(copies) > NAMED else "")
        raise ValueError(
            f"{len(copies)} of the {len(val)} held-out images of {val.name} are also training images of {train.name}: "
            f"{named}. Expected images that no generator has seen. Remove them from the held-out images, or have them "
            "left out with --data.drop-shared true."
        )
    return len(copies)


def unshared(train: Split, val: Split) -> Int64[Tensor, " k"]:
    """The rows of `val`, in order, whose images are not in `train`."""
    known = set(train.digests)
    return torch.tensor([row for row, digest in enumerate(val.digests) if digest not in known], dtype=torch.int64)


class SplitConfig(Config):
    """How the rows of a dataset are divided: once, stratified by class, seeded."""

    val_fraction: float = Field(default=1 / 3, gt=0, lt=1)
    """Share of each class that is held out: nothing is fitted to it, floors and scores come from it."""
    split_seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the split and of the row order inside each part."""
    limit: int | None = Field(default=None, ge=2)
    """At most this many images from each place, drawn by `split_seed` with the classes in proportion: for a trial."""
    drop_shared: bool = False
    """Leave out of val the images that are also in train; unset, more than one in a hundred of them are refused."""

    def kept(self, conditions: Conditions) -> Int64[Tensor, " k"]:
        """The rows that `limit` leaves, in order."""
        if self.limit is None or self.limit >= len(conditions):
            return torch.arange(len(conditions))
        return draw(conditions, self.limit, "limit", self.split_seed).sort().values


def split_dataset(
    name: str, images: Float32[Tensor, "n c h w"], conditions: Conditions, config: SplitConfig
) -> Dataset:
    """Divide images by `split_rows`. Raises ValueError as it and `shared` do."""
    parts = {
        part: TensorSplit(images[rows].contiguous(), conditions[rows], f"{name} ({part})")
        for part, rows in split_rows(name, conditions, config).items()
    }
    if config.drop_shared:
        parts["val"] = parts["val"].only(unshared(**parts))
    shared(**parts)
    return Dataset(name, parts["train"], parts["val"])


def split_rows(name: str, conditions: Conditions, config: SplitConfig) -> dict[str, Int64[Tensor, " k"]]:
    """Shuffled row numbers of train and val, each with every stratum of what `limit` leaves in the same proportion.

    Raises ValueError when a stratum has too few rows to appear in both.
    """
    generator = torch.Generator().manual_seed(config.split_seed)
    kept = config.kept(conditions)
    strata = torch.zeros(len(kept), dtype=torch.int64) if conditions.strata is None else conditions.strata[kept]
    parts: dict[str, list[Tensor]] = {"train": [], "val": []}
    for stratum in strata.unique().tolist():
        rows = kept[strata == stratum]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        held_out = round(len(rows) * config.val_fraction)
        if not 0 < held_out < len(rows):
            caption = conditions[rows[:1]].captions()[0]
            raise ValueError(
                f"{name}{caption and f': {caption}'} has {len(rows)} row(s), of which {held_out} would be held out; "
                "train and val need at least one each. Add images, drop the class, change val_fraction, or raise limit."
            )
        for part, chunk in zip(parts.values(), rows.split([len(rows) - held_out, held_out]), strict=True):
            part.append(chunk)
    joined = {part: torch.cat(chunks) for part, chunks in parts.items()}
    return {part: rows[torch.randperm(len(rows), generator=generator)] for part, rows in joined.items()}


def labelled(labels: Int64[Tensor, " n"] | None, names: tuple[str, ...], count: int) -> Conditions:
    """Classes where there are at least two of them; otherwise there is nothing to ask for."""
    return Unconditional(count) if labels is None or len(names) < 2 else Classes(labels, names)
