"""What a source of images is: single images by number, each with its condition; and what all kinds of source share.

A source reads in any order, so that rows can be shuffled and divided among processes. Its order is that of the images'
names, never that of a file system.

Letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irdm.conditions import Conditions
from irdm.data.base import labelled
from irdm.data.decode import Header, decode, header
from irdm.progress import Meter, Say

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
NOTES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".html", ".xml", ".yaml", ".yml", ".log", ".cls")
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")  # and every name that begins with a dot
LARGEST = 2**28  # bytes of one image file: what says it is longer is no image
MOST_CLASSES = 1_000_000
MOST_LISTED = 20  # problems in one message

Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageSource(ABC):
    """n images by number: `names` as they are on disk, and `conditions`, their classes when there are several."""

    def __init__(self, path: Path, names: Sequence[str], labels: Tensor | None, class_names: Sequence[str]):
        self.path, self.names = path, names
        self.conditions: Conditions = labelled(labels, tuple(class_names), len(names))
        self._digests: dict[int, bytes] = {}
        self._looked: set[int] = set()

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """One image: the bytes of its file, or its pixels as uint8 [h, w, c]. Safe in several threads at once.

        Raises ValueError or OSError naming an image that cannot be read.
        """

    def where(self, row: int) -> str:
        """The place of an image, for messages."""
        return printable(f"{self.path}/{self.names[row]}")

    @cached_property
    def channels(self) -> int:
        """1 when every image that can be read is grey by its header, else 3; looks no further than the first colour."""
        return 1 if all(found.grey for found in self.headers()) else 3

    def headers(self, rows: Iterable[int] | None = None) -> Iterator[Header]:
        """What the images, or some, say of themselves, in order; those that cannot be used are left to `decoded`."""
        found = in_threads(self._header, range(len(self)) if rows is None else rows, block=32)
        return (header for header in found if header is not None)

    def digests(self, rows: Sequence[int]) -> list[bytes]:
        """sha256 of the content of some images, in order, none decoded: of a file's bytes, or of pixels and shape."""
        new = [row for row in rows if row not in self._digests]
        self._digests.update(zip(new, in_threads(lambda row: _sha256(self.read(row)), new), strict=True))
        return [self._digests[row] for row in rows]

    def look(self, rows: Sequence[int], progress: Say | None = None) -> None:
        """Read and decode some images once, so that none fails later. Raises ValueError naming all that do."""
        new = sorted(row for row in rows if row not in self._looked)
        meter = Meter(f"reading {printable(str(self.path))}", len(new), "images", progress)
        problems: list[str] = []
        for row, (digest, problem) in zip(new, in_threads(self._seen, new, block=64), strict=True):
            self._digests[row] = digest
            problems += [problem] if problem else []
            meter()
        if problems:
            raise ValueError(_listed(problems, len(new)))
        self._looked.update(new)

    def decoded(
        self,
        rows: Sequence[int],
        shape: tuple[int, int] | None = None,
        channels: int = 3,
        among: Sequence[int] | None = None,
    ) -> Generator[Tensor, None, None]:
        """The pixels of some images, uint8 [channels, h, w], in the order of `rows`, read and decoded by threads.

        They are cropped and resized to `shape` [h, w]; without it each has its own size.

        Raises ValueError at the first image that cannot be used, after looking through all those `among` which it is
        used (None: the whole source), so that one message names every one of them: a source with a mended image is
        another one, and work on it begins again.
        """
        try:
            block = 256 if shape else 16
            yield from in_threads(lambda row: self._pixels(row, shape, channels), rows, block)
        except (ValueError, OSError) as error:
            look = range(len(self)) if among is None else among
            problems = [text for text in in_threads(lambda row: self._problem(row, shape, channels), look) if text]
            if len(problems) < 2:
                raise
            raise ValueError(_listed(problems, len(look))) from error

    def _pixels(self, row: int, shape: tuple[int, int] | None, channels: int) -> Tensor:
        return decode(self.read(row), shape, self.where(row), channels)

    def _seen(self, row: int) -> tuple[bytes, str]:
        """The sha256 of an image, and what is wrong with it, if anything."""
        try:
            content = self.read(row)
            decode(content, None, self.where(row))
        except (ValueError, OSError) as error:
            return b"", str(error)
        return _sha256(content), ""

    def _problem(self, row: int, shape: tuple[int, int] | None, channels: int) -> str:
        try:
            self._pixels(row, shape, channels)
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    def _header(self, row: int) -> Header | None:
        try:
            return header(self.read(row), self.where(row))
        except (ValueError, OSError):
            return None


def _listed(problems: Sequence[str], among: int) -> str:
    if len(problems) == 1:
        return problems[0]
    listed = "\n  ".join(problems[:MOST_LISTED]) + ("\n  ..." if len(problems) > MOST_LISTED else "")
    return f"{len(problems)} of {among} images cannot be used:\n  {listed}"


def _sha256(content: bytes | NDArray) -> bytes:
    return hashlib.sha256(
        content if isinstance(content, bytes) else repr(content.shape).encode() + content.tobytes()
    ).digest()


def printable(name: str) -> str:
    """A name that any terminal, file and JSON can hold: bytes of it that are no UTF-8 become \\udcff and such."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], block: int = 256, threads: int | None = None
) -> Iterator[Result]:
    """function(item) of every item, in order, computed at most two blocks ahead. The first error is raised in its turn.

    None for `threads` shares the processors with the other processes that torchrun started here.
    """
    threads = threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    items = iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        ready = pool.map(function, list(islice(items, block)))
        while following := list(islice(items, block)):
            ahead = pool.map(function, following)
            yield from ready
            ready = ahead
        yield from ready
    finally:
        pool.shutdown(cancel_futures=True)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name in LITTER


def image_names(names: Sequence[str], path: Path, also: Sequence[str] = ()) -> list[str]:
    """The names of images, in order. Raises ValueError for a file of a kind that is neither image nor note."""
    kept, unknown = [], []
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        if any(map(is_litter, name.split("/"))) or suffix in NOTES:
            continue
        (kept if suffix in IMAGES or suffix in also else unknown).append(name)
    if unknown:
        raise ValueError(
            f"{path} holds {len(unknown)} file(s) of unknown kind, such as {printable(unknown[0])}. Known images are "
            f"{' '.join(IMAGES)}; text beside them may be {' '.join(NOTES)}. Move the others away."
        )
    if not kept:
        raise ValueError(f"{path} holds no image among its {len(names)} file(s); known are {' '.join(IMAGES)}.")
    if len(set(kept)) < len(kept):
        raise ValueError(f"{path} holds {printable(repeated(kept))} twice; rename one of the two.")
    return kept


def folder_classes(names: Sequence[str], path: Path) -> tuple[Tensor | None, list[str]]:
    """Labels from the first folder below what all names share; class names in sorted order."""
    folders = [name.split("/")[:-1] for name in names]
    shared = len(os.path.commonprefix([min(folders), max(folders)]))
    classes = [folder[shared] if len(folder) > shared else None for folder in folders]
    found = sorted({name for name in classes if name is not None})
    if not found:
        return None, []
    if None in classes:
        raise ValueError(
            f"{path} mixes images inside and outside of class folders: {printable(names[classes.index(None)])} lies "
            f"beside the folder '{printable(found[0])}'. Put every image into the folder of its class, or all into one."
        )
    number = {name: label for label, name in enumerate(found)}
    return torch.tensor([number[name] for name in classes if name is not None]), [printable(name) for name in found]


def no_folder_is_empty(folders: Iterable[str], files: Iterable[str], path: Path) -> None:
    """Raises ValueError for a folder of an archive below which no file lies."""
    filled = {parent.as_posix() for name in files for parent in PurePosixPath(name).parents}
    empty = sorted(name for name in folders if PurePosixPath(name).as_posix() not in filled and name.strip("./"))
    if empty := [name for name in empty if not is_litter(PurePosixPath(name).parts[0])]:
        raise ValueError(
            f"{path} holds the empty folder {printable(empty[0])}: a class without images? Pack it again, filled or "
            "without it."
        )


def number_names(highest: int, path: Path) -> list[str]:
    """Names of classes that only have numbers: "0" to the largest label."""
    if highest >= MOST_CLASSES:
        raise ValueError(
            f"{path}: a class number is {highest}; expected numbers below {MOST_CLASSES}. Renumber the classes from 0."
        )
    return [str(label) for label in range(highest + 1)]


def within_limit(size: int, where: str) -> None:
    """Raises ValueError when an image file is longer than any image."""
    if size > LARGEST:
        raise ValueError(
            f"{printable(where)} is {size} bytes long, more than the {LARGEST} of the largest image. Take it out."
        )


def repeated(names: Sequence[str]) -> str:
    """The name that is there most often."""
    return Counter(names).most_common(1)[0][0]
