"""Images of one size in a NumPy file: uint8, or floats in [0, 1], with a class number each or without.

Letters: n images, h height, w width, c channels.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from irdm.data.archives import open_member, open_zip
from irdm.data.image_source import ImageSource, number_names

SMALLEST = 4
LAYOUTS = "[n, h, w], [n, h, w, c] or [n, c, h, w] with c = 1 or 3 and h, w >= 4"
BLOCK = 2**24  # numbers that are checked at once
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArraySource(ImageSource):
    """An `.npz` with `images` (or `arr_0`) and perhaps `labels` (or `arr_1`), or an `.npy` of images.

    Mapped from the disk rather than read. Floats are rounded to 8 bits: pixels are round(255 x). Never unpickles.

    Raises ValueError for a file, shape, type, range, NaN or label that does not fit, naming what was found.
    """

    def __init__(self, path: Path):
        arrays = _arrays(path)
        self._images = _layout(arrays["images"], path)
        rows = len(self._images)
        if self._images.dtype != np.uint8:
            _check_floats(self._images, path)
        labels, highest = arrays.get("labels"), -1
        if labels is not None:
            if labels.dtype.kind not in "iu" or labels.shape != (rows,) or labels.min() < 0:
                raise ValueError(
                    f"{path}: labels are {labels.dtype} of shape {list(labels.shape)}; expected integers of shape "
                    f"[{rows}], one class number an image, 0 or more."
                )
            highest = int(labels.max())
        names = number_names(highest, path)
        classes = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        super().__init__(path, [f"images[{row}]" for row in range(rows)], classes, names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        _, h, w, c = self._images.shape
        return c, h, w

    def read(self, row: int) -> NDArray[np.uint8]:
        pixels = np.asarray(self._images[row])
        if pixels.dtype != np.uint8:
            pixels = (pixels * 255.0).round().astype(np.uint8)
        return np.ascontiguousarray(pixels)


def _layout(images: NDArray, path: Path) -> NDArray:
    """A view [n, h, w, c]."""
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(
            f"{path}: images are {images.dtype}; expected uint8 in 0..255 or floats in 0..1. Convert them."
        )
    shape = list(images.shape)
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[3] not in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size or min(images.shape[1:3]) < SMALLEST:
        raise ValueError(f"{path}: images have the shape {shape}; expected {LAYOUTS}. Reshape them.")
    return images


def _check_floats(images: NDArray, path: Path) -> None:
    bad, low, high = 0, math.inf, -math.inf
    step = max(1, BLOCK // math.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        block = images[start : start + step]
        bad += int((~np.isfinite(block)).any(axis=(1, 2, 3)).sum())
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    if bad:
        raise ValueError(f"{path}: {bad} of {len(images)} images hold NaN or infinity. Remove or repair these rows.")
    if low < 0 or high > 1:
        mend = "(x + 1) / 2" if low >= -1 and high <= 1 else "x / 255, or store uint8" if low >= 0 else "to 0..1"
        raise ValueError(f"{path}: float images span {low:g} to {high:g}; expected 0 to 1. Rescale them: {mend}.")


def _arrays(path: Path) -> dict[str, NDArray]:
    """The `images`, and the `labels` if there are any, mapped rather than read."""
    try:
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                return {"images": _mapped(file, os.path.getsize(path))}
        with open_zip(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            stored = ("images", "labels") if "images" in members else ("arr_0", "arr_1")
            if stored[0] not in members:
                raise ValueError(f"it holds the arrays {sorted(members)}, and none is called 'images' or 'arr_0'")
            pairs = zip(("images", "labels"), stored, strict=True)
            return {name: _member(archive, members[here]) for name, here in pairs if here in members}
    except MemoryError:
        raise
    except Exception as error:  # a damaged header leads NumPy into errors of every kind
        raise ValueError(
            f"{path} cannot be read as a NumPy file of plain numbers ({error}). Save it with "
            "numpy.savez(path, images=..., labels=...); pickled objects are refused."
        ) from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray:
    """One array of an `.npz` as a map: of the file itself, or of an unpacked copy that goes with the process.

    Either way all of it is read once, so that its checksum is compared.
    """
    stored = info.compress_type == zipfile.ZIP_STORED
    with open_member(archive, info) as member:
        _header(member, info.file_size)
    if not stored and (free := shutil.disk_usage(tempfile.gettempdir()).free) < info.file_size:
        raise ValueError(
            f"{info.filename} unpacks to {info.file_size} bytes, and {tempfile.gettempdir()} has room for {free}: "
            "make room, set TMPDIR, or use numpy.savez, which need not be unpacked"
        )
    with open(archive.filename or "", "rb") if stored else tempfile.TemporaryFile() as file:
        with open_member(archive, info) as member:
            size = 0
            while block := member.read(2**20):
                size += len(block)
                if not stored:
                    file.write(block)
        if size != info.file_size:
            raise ValueError(f"{info.filename} is not the {info.file_size} bytes long that the archive tells")
        start = 0
        if stored:
            file.seek(info.header_offset + 26)
            start = info.header_offset + 30 + int(np.frombuffer(file.read(4), "<u2").sum())
        file.seek(start)
        return _mapped(file, start + size)


def _mapped(file: IO[bytes], end: int) -> NDArray:
    """The array whose header is next in a file and whose numbers reach to `end`; the map keeps its own handle."""
    shape, order, dtype = _header(file, end)
    return np.memmap(file, dtype, "r", file.tell(), shape, order) if math.prod(shape) else np.zeros(shape, dtype)


def _header(file: IO[bytes], end: int) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype]:
    """Shape, order and type. Raises ValueError for pickled objects, and unless the numbers are just as many as told."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"its format is of version {version}; expected 1.0 or 2.0")
    shape, fortran, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    told, there = math.prod(shape) * dtype.itemsize, end - file.tell()
    if told != there:
        raise ValueError(f"an array of shape {list(shape)} would take {told} bytes, and there are {there}")
    return shape, "F" if fortran else "C", dtype
