"""The four idx files of MNIST and its like: images and labels, for training and held out, as they were published."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from irdm.conditions import Classes, draw
from irdm.config import Config
from irdm.data.base import Dataset, TensorSplit, shared, unshared
from irdm.data.image_source import number_names, printable

PARTS = {"train": ("train-images", "train-labels"), "val": ("t10k-images", "t10k-labels")}
BYTES = 8  # the type code of unsigned bytes
LARGEST = 2**31  # bytes of one file when unpacked
CLOTHES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where its package dataset-fashion-mnist puts them
SOURCE = (
    " Fashion-MNIST (MIT licence, 31 MB) is the Debian and Ubuntu package dataset-fashion-mnist: apt install "
    f"dataset-fashion-mnist puts it into {DEBIAN}. Elsewhere, fetch its four files from its authors (zalandoresearch "
    "on GitHub) into a folder, and give that with --data.path DIR. Nothing is downloaded for you."
)


class IdxConfig(Config):
    """A folder of `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-...` and `t10k-labels-...`.

    Each may end in .gz. The published test images are held out: nothing is fitted to them.
    """

    kind: Literal["idx"] = "idx"
    """Name of this kind of dataset."""
    path: Path
    """The folder."""
    names: tuple[str, ...] = ()
    """What the classes are called, in order; unset, by their numbers."""
    limit: int | None = Field(default=None, ge=2)
    """At most this many images of each part, drawn by `split_seed` with the classes in proportion: for a trial."""
    split_seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the order of the rows, and of what `limit` leaves."""
    drop_shared: bool = False
    """Leave held-out images out that are also training images, which are refused otherwise."""

    def build(self) -> Dataset:
        """Images [n, 1, h, w] in memory, 4 bytes a pixel, their rows shuffled.

        Raises ValueError for a file that is missing, cut short, of another kind, or does not fit its fellows.
        """
        parts = self._parts()
        return Dataset(printable(self.path.name), parts["train"], parts["val"])

    def _parts(self) -> dict[str, TensorSplit]:
        if not self.path.is_dir():
            raise ValueError(
                f"There is no folder {self.path}; expected one with the four files train-images-idx3-ubyte, "
                f"train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each perhaps with .gz."
                f"{SOURCE if self.names == CLOTHES else ''}"
            )
        read = {part: [_read(self.path, name) for name in names] for part, names in PARTS.items()}
        classes = max(int(labels.max(initial=0)) for _, labels in read.values()) + 1
        if self.names and classes > len(self.names):
            raise ValueError(
                f"{self.path}: the labels go up to {classes - 1}, but there are names for {len(self.names)} classes."
            )
        names = self.names or number_names(classes - 1, self.path)
        splits = {}
        for part, (images, labels) in read.items():
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
                raise ValueError(
                    f"{self.path}: {' and '.join(PARTS[part])} have the shapes {list(images.shape)} and "
                    f"{list(labels.shape)}; expected [n, h, w] and [n]. The files may have been swapped."
                )
            conditions = Classes(torch.from_numpy(labels.astype(np.int64)), names)
            count = min(self.limit or len(labels), len(labels))
            rows = draw(conditions, count, "idx", part, self.split_seed)
            pixels = torch.from_numpy(images)[rows][:, None].float() / 255
            splits[part] = TensorSplit(pixels, conditions[rows], f"{printable(self.path.name)} ({part})")
        sizes = {part: split.image_shape for part, split in splits.items()}
        if sizes["train"] != sizes["val"]:
            raise ValueError(f"{self.path}: training images are {sizes['train']} and held-out ones {sizes['val']}.")
        if self.drop_shared:
            splits["val"] = splits["val"].only(unshared(**splits))
        shared(**splits)
        return splits


def _read(folder: Path, name: str) -> NDArray[np.uint8]:
    """One file as an array. Raises ValueError naming it when it is missing, cut short or something else."""
    found = sorted(path for path in folder.glob(f"{name}*") if path.is_file())
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{folder}: expected one file {name}-idx*-ubyte, or the same with .gz; found {listed}.")
    path = found[0]
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); copy it again.") from None
    if len(data) > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST / 2**30:.0f} GiB, which no file of this kind is.")
    dims = data[3] if len(data) >= 4 else 0
    if data[:3] != bytes((0, 0, BYTES)) or not 1 <= dims <= 3 or len(data) < 4 + 4 * dims:
        raise ValueError(f"{path} is no idx file of bytes: it begins with {data[:4].hex(' ') or 'nothing'}.")
    shape = tuple(np.frombuffer(data, ">u4", dims, 4).tolist())
    there, wanted = len(data) - 4 - 4 * dims, math.prod(shape)
    if there != wanted:
        raise ValueError(f"{path} holds {there} bytes where its shape {list(shape)} needs {wanted}; copy it again.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()
