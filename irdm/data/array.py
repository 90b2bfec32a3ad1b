"""Your own images in one NumPy file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from irdm.data.base import Dataset, SplitConfig, TensorSplit, shared, split_rows, unshared
from irdm.data.image_source import printable
from irdm.data.images import Pictures
from irdm.data.numpy_file import ArraySource


class ArrayConfig(SplitConfig):
    """Images and labels from an `.npz` (arrays `images` and, if there are classes, `labels`) or an `.npy` of images.

    Pixels have 8 bits: floats in [0, 1] are rounded to k/255.
    """

    kind: Literal["array"] = "array"
    """Name of this kind of dataset."""
    path: Path
    """The `.npz` or `.npy` file."""

    def build(self) -> Dataset:
        """The images [n, c, h, w], in memory, split. Without labels, or with one class, there is no condition.

        Raises ValueError for a file, shape, range, NaN or label that does not fit, naming what was found, and when
        held-out images are also training images (`irdm.data.base.shared`).
        """
        if self.path.is_dir():
            raise ValueError(
                f"{self.path} is a folder; an array is an .npz or .npy file. For a folder of pictures use "
                f"--data.kind images --data.path {self.path}, or the preset `images`."
            )
        if not self.path.is_file():
            raise ValueError(f"There is no file {self.path}; data.path must name an .npz or .npy file.")
        source, name = ArraySource(self.path), printable(self.path.stem)
        classes = source.conditions.spec.width
        if source.conditions.strata is not None and (found := len(source.conditions.strata.unique())) < classes:
            raise ValueError(
                f"{self.path}: labels take {found} values up to {classes - 1}; expected every number from 0 to "
                "classes - 1. Renumber them: numpy.unique(labels, return_inverse=True)[1]."
            )
        parts = {
            part: TensorSplit(
                Pictures(source, rows, source.image_shape).images, source.conditions[rows], f"{name} ({part})"
            )
            for part, rows in split_rows(name, source.conditions, self).items()
        }
        if self.drop_shared:
            parts["val"] = parts["val"].only(unshared(**parts))
        shared(**parts)
        return Dataset(name, **parts)
