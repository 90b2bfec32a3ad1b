"""Images of one size in a NumPy file: uint8, or floats in [0, 1], with a class number each or without.

Letters: n images, h height, w width, c channels.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import tempfile
import weakref
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from irdm.data.archives import member_blocks, open_zip
from irdm.data.image_source import ImageSource, number_names

SMALLEST = 4
LAYOUTS = "[n, h, w], [n, h, w, c] or [n, c, h, w] with c = 1 or 3 and h, w >= 4"
BLOCK = 2**24  # numbers that are checked at once
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArraySource(ImageSource):
    """An `.npz` with `images` (or `arr_0`) and perhaps `labels` (or `arr_1`), or an `.npy` of images.

    Read an image at a time. Floats are rounded to 8 bits: pixels are round(255 x). Never unpickles.

    Raises ValueError for a file, shape, type, range, NaN or label that does not fit, naming what was found.
    """

    def __init__(self, path: Path):
        arrays = _arrays(path)
        self._images, self._axes = arrays["images"], _axes(arrays["images"], path)
        rows = self._images.shape[0]
        if self._images.dtype != np.uint8:
            _check_floats(self._images, path)
        classes, highest = None, -1
        if "labels" in arrays:
            stored = arrays["labels"]
            labels = stored[:] if stored.dtype.kind in "iu" and stored.shape == (rows,) else np.array([-1])
            if labels.min() < 0:
                raise ValueError(
                    f"{path}: labels are {stored.dtype} of shape {list(stored.shape)}; expected integers of shape "
                    f"[{rows}], one class number an image, 0 or more."
                )
            classes, highest = torch.from_numpy(labels.astype(np.int64)), int(labels.max())
        super().__init__(path, [f"images[{row}]" for row in range(rows)], classes, number_names(highest, path))
        h, w, *c = np.transpose(np.empty(self._images.shape[1:], np.uint8), self._axes).shape
        self.image_shape = (c[0] if c else 1, h, w)

    def __reduce__(self):
        return ArraySource, (self.path,)  # another process opens the file itself

    def read(self, row: int) -> NDArray[np.uint8]:
        pixels = np.transpose(self._images[row : row + 1][0], self._axes)
        if pixels.dtype != np.uint8:
            pixels = (pixels * 255.0).round().astype(np.uint8)
        return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[..., None])


class _Stored:
    """The rows of an array in a file: a map in their place would kill the process when the file is cut under it."""

    def __init__(self, file: io.BufferedIOBase, start: int, shape: tuple[int, ...], dtype: np.dtype, path: Path):
        self._file, self._start, self.shape, self.dtype, self._path = os.dup(file.fileno()), start, shape, dtype, path
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, rows: slice) -> NDArray:
        first, last, _ = rows.indices(self.shape[0])
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        data = os.pread(self._file, (last - first) * size, self._start + first * size)
        if len(data) != (last - first) * size:
            raise ValueError(f"{self._path} was cut short after it had been opened.")
        return np.frombuffer(data, self.dtype).reshape(last - first, *self.shape[1:])


def _axes(images: _Stored, path: Path) -> tuple[int, ...]:
    """How one image is to be transposed to [h, w] or [h, w, c]."""
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise ValueError(
            f"{path}: images are {images.dtype}; expected uint8 in 0..255 or floats in 0..1. Convert them."
        )
    _, *shape = images.shape
    first = len(shape) == 3 and shape[2] not in (1, 3)
    axes = (1, 2, 0) if first else (0, 1, 2)[: len(shape)]
    fits = len(shape) == 2 or (len(shape) == 3 and shape[axes[2]] in (1, 3))
    if not fits or not math.prod(images.shape) or min(shape[axis] for axis in axes[:2]) < SMALLEST:
        raise ValueError(f"{path}: images have the shape {list(images.shape)}; expected {LAYOUTS}. Reshape them.")
    return axes


def _check_floats(images: _Stored, path: Path) -> None:
    bad, low, high = 0, math.inf, -math.inf
    rows, step = images.shape[0], max(1, BLOCK // math.prod(images.shape[1:]))
    for start in range(0, rows, step):
        block = images[start : start + step]
        bad += int((~np.isfinite(block)).reshape(len(block), -1).any(axis=1).sum())
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    if bad:
        raise ValueError(f"{path}: {bad} of {rows} images hold NaN or infinity. Remove or repair these rows.")
    if low < 0 or high > 1:
        mend = "(x + 1) / 2" if low >= -1 and high <= 1 else "x / 255, or store uint8" if low >= 0 else "to 0..1"
        raise ValueError(f"{path}: float images span {low:g} to {high:g}; expected 0 to 1. Rescale them: {mend}.")


def _arrays(path: Path) -> dict[str, _Stored]:
    """The `images`, and the `labels` if there are any."""
    try:
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                return {"images": _stored(file, os.path.getsize(path), path)}
        with open_zip(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            stored = ("images", "labels") if "images" in members else ("arr_0", "arr_1")
            if stored[0] not in members:
                raise ValueError(f"it holds the arrays {sorted(members)}, and none is called 'images' or 'arr_0'")
            pairs = zip(("images", "labels"), stored, strict=True)
            return {name: _member(archive, members[here], path) for name, here in pairs if here in members}
    except MemoryError:
        raise
    except Exception as error:  # a damaged header leads NumPy into errors of every kind
        raise ValueError(
            f"{path} cannot be read as a NumPy file of plain numbers ({error}). Save it with "
            "numpy.savez(path, images=..., labels=...); pickled objects are refused."
        ) from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> _Stored:
    """One array of an `.npz`: in the file itself, or in an unpacked copy that goes with the process.

    Either way all of it is read once, so that its checksum is compared.
    """
    stored, blocks = info.compress_type == zipfile.ZIP_STORED, member_blocks(archive, info)
    first = next(blocks)
    _header(io.BytesIO(first), info.file_size)
    if not stored and (free := shutil.disk_usage(tempfile.gettempdir()).free) < info.file_size:
        raise ValueError(
            f"{info.filename} unpacks to {info.file_size} bytes, and {tempfile.gettempdir()} has room for {free}: "
            "make room, set TMPDIR, or use numpy.savez, which need not be unpacked"
        )
    with open(path, "rb") if stored else tempfile.TemporaryFile() as file:
        for block in chain([first], blocks):
            if not stored:
                file.write(block)
        start = 0
        if stored:
            file.seek(info.header_offset + 26)
            start = info.header_offset + 30 + int(np.frombuffer(file.read(4), "<u2").sum())
        file.seek(start)
        return _stored(file, start + info.file_size, path)


def _stored(file: io.BufferedIOBase, end: int, path: Path) -> _Stored:
    """The array whose header is next in a file and whose numbers reach to `end`."""
    shape, fortran, dtype = _header(file, end)
    if not fortran:
        return _Stored(file, file.tell(), shape, dtype, path)
    columns = np.frombuffer(file.read(end - file.tell()), dtype).reshape(shape, order="F")
    with tempfile.TemporaryFile() as turned:
        np.ascontiguousarray(columns).tofile(turned)
        return _Stored(turned, 0, shape, dtype, path)


def _header(file: io.BufferedIOBase, end: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first index runs fastest, and type.

    Raises ValueError for pickled objects, and unless the numbers are just as many as told.
    """
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"its format is of version {version}; expected 1.0 or 2.0")
    shape, fortran, dtype = HEADERS[version](file)
    if not shape:
        raise ValueError("it holds a single number")
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    told, there = math.prod(shape) * dtype.itemsize, end - file.tell()
    if told != there:
        raise ValueError(f"an array of shape {list(shape)} would take {told} bytes, and there are {there}")
    return shape, fortran, dtype
