"""Your own images in one NumPy file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irdm.data.base import Dataset, SplitConfig, split_dataset

CHANNELS = (1, 3)
SMALLEST = 4
LAYOUTS = "[n, h, w], [n, h, w, c] or [n, c, h, w] with c = 1 or 3 and h, w >= 4"


class ArrayConfig(SplitConfig):
    """Images and labels from an `.npz` (arrays `images` and, if there are classes, `labels`) or an `.npy` of images."""

    kind: Literal["array"] = "array"
    """Name of this kind of dataset."""
    path: Path
    """The `.npz` or `.npy` file."""

    def build(self) -> Dataset:
        """Read, check, convert to [n, c, h, w] in [0, 1], split. Without labels everything is one class.

        Raises ValueError for a file, shape, range, NaN or label that does not fit, naming what was found.
        """
        arrays = _load(self.path)
        if "images" not in arrays:
            raise ValueError(
                f"{self.path} holds the arrays {sorted(arrays)}, none called 'images'. "
                "Save it with numpy.savez(path, images=..., labels=...)."
            )
        images = _images(arrays["images"], self.path)
        labels = arrays.get("labels", np.zeros(len(images), dtype=np.int64))
        labels = _labels(labels, len(images), self.path)
        names = tuple(str(label) for label in range(int(labels.max()) + 1))
        return split_dataset(self.path.stem, images, labels, names, self)


def _load(path: Path) -> dict[str, NDArray]:
    """The arrays of a file by name; an `.npy` holds only `images`. Never unpickles."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}. `data.path` must name an .npz or .npy file.")
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"images": found}
        with found:
            return {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as an .npz or .npy of plain numbers ({error}). "
            "Save numeric arrays with numpy.savez; pickled objects are refused."
        ) from error


def _images(array: NDArray, path: Path) -> Tensor:
    """Checked images as float32 [n, c, h, w] in [0, 1]."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"{path}: images are {array.dtype}; expected uint8 in 0..255 or floats in 0..1. Convert them.")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and (array.shape[1] in CHANNELS) != (array.shape[3] in CHANNELS):
        array = array if array.shape[1] in CHANNELS else np.moveaxis(array, 3, 1)
    else:
        raise ValueError(f"{path}: images have the shape {list(array.shape)}; expected {LAYOUTS}. Reshape them.")
    if array.size == 0 or min(array.shape[2:]) < SMALLEST:
        raise ValueError(f"{path}: images come out as [n, c, h, w] = {list(array.shape)}; expected {LAYOUTS}.")
    images = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if array.dtype == np.uint8:
        return images / 255
    if bad := int((~images.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(f"{path}: {bad} of {len(images)} images hold NaN or infinity. Remove or repair these rows.")
    low, high = images.min().item(), images.max().item()
    if low < 0 or high > 1:
        mend = "(x + 1) / 2" if low >= -1 and high <= 1 else "x / 255, or store uint8" if low >= 0 else "to 0..1"
        raise ValueError(f"{path}: float images span {low:g} to {high:g}; expected 0 to 1. Rescale them: {mend}.")
    return images


def _labels(array: NDArray, rows: int, path: Path) -> Tensor:
    """Checked labels as int64 [n]."""
    if array.dtype.kind not in "iu" or array.shape != (rows,):
        raise ValueError(
            f"{path}: labels are {array.dtype} of shape {list(array.shape)}; expected integers of shape [{rows}], "
            "one class number an image."
        )
    counts = np.unique(array)
    if counts[0] < 0 or counts[-1] != len(counts) - 1:
        raise ValueError(
            f"{path}: labels take {len(counts)} values from {counts[0]} to {counts[-1]}; expected every number from 0 "
            "to classes - 1. Renumber them: numpy.unique(labels, return_inverse=True)[1]."
        )
    return torch.from_numpy(array.astype(np.int64))
