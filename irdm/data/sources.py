"""Where images come from: a folder, a zip, webdataset tar shards or a NumPy array, all as one numbered list.

A source reads single images in any order, so that rows can be shuffled and divided among processes. Its order is that
of the images' names, never that of a file system, and its fingerprint is of their content.

Letters: n images, h height, w width, c channels.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irdm.data.decode import decode

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
NOTES = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".html", ".xml", ".yaml", ".yml", ".log", ".cls")
LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")  # and every name that begins with a dot
MOST_CLASSES = 1_000_000
MOST_LISTED = 20  # problems in one message
LAYOUTS = "[n, h, w], [n, h, w, c] or [n, c, h, w] with c = 1 or 3"

Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageSource(ABC):
    """Images by number, with `names`, int64 `labels` [n] and `class_names`; one class when nothing tells them apart."""

    def __init__(self, path: Path, names: Sequence[str], labels: Tensor, class_names: Sequence[str]):
        self.path, self.names = path, names
        self.labels, self.class_names = labels, tuple(class_names)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Image `index`: the bytes of its file, or its pixels as uint8 [h, w, 3]. Safe in several threads at once."""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every image, in order: its name, class, size in bytes and the sha256 of its bytes.

        Reads everything once, a few images at a time. Where the source lies and when it was written play no part.
        """
        total = hashlib.sha256()
        for digest in in_threads(self._digest, range(len(self))):
            total.update(digest)
        return total.hexdigest()

    def decoded(self, rows: Iterable[int], size: int | None, block: int = 256) -> Generator[Tensor, None, None]:
        """The pixels of some images, uint8 [3, h, w], in the order of `rows`; decoded and cropped by threads.

        Raises ValueError at the first image that cannot be used, after looking through all the others, so that one
        message names every one of them: a source with a mended image is another one, and work on it begins again.
        """
        try:
            yield from in_threads(lambda row: self._pixels(row, size), rows, block)
        except ValueError as error:
            problems = [text for text in in_threads(lambda row: self._problem(row, size), range(len(self))) if text]
            if len(problems) < 2:
                raise
            listed = "\n  ".join(problems[:MOST_LISTED]) + ("\n  ..." if len(problems) > MOST_LISTED else "")
            raise ValueError(f"{len(problems)} of {len(self)} images cannot be used:\n  {listed}") from error

    def _pixels(self, index: int, size: int | None) -> Tensor:
        return decode(self.read(index), size, str(self.path / self.names[index]))

    def _problem(self, index: int, size: int | None) -> str:
        try:
            self._pixels(index, size)
        except ValueError as error:
            return str(error)
        return ""

    def _digest(self, index: int) -> bytes:
        data = self.read(index)
        content = data if isinstance(data, bytes) else data.tobytes()
        shape = "file" if isinstance(data, bytes) else f"{data.shape}"
        head = f"{self.names[index]}\0{self.class_names[self.labels[index]]}\0{shape}\0{len(content)}\0"
        return hashlib.sha256(head.encode("utf-8", "surrogateescape") + hashlib.sha256(content).digest()).digest()


def open_source(path: Path) -> ImageSource:
    """The images at `path`, of whatever kind is found there.

    - a folder of images, or of one folder a class (the first folder below what all images share is the class);
    - a `.zip` laid out in the same way;
    - a webdataset `.tar`, or a folder of them: `key.cls` beside `key.jpg` holds the class number, else folders tell;
    - an `.npz` with uint8 `images` (or `arr_0`) and perhaps integer `labels` (or `arr_1`), or an `.npy`.

    Raises ValueError when there is no image, or when it cannot tell what something is: no file is passed over except
    hidden ones and text that lies beside the images.
    """
    path = Path(path)
    if path.is_dir():
        names = _pictures(sorted(_walk(path)), path, also=".tar")
        archives = [name for name in names if name.endswith(".tar")]
        if archives and len(archives) < len(names):
            raise ValueError(f"{path} holds both images and .tar archives, such as {archives[0]}; give one of the two.")
        return TarSource(path, archives) if archives else FolderSource(path, names)
    if not path.is_file():
        raise ValueError(f"There is no {path}; give a folder of images, a .zip, .tar, .npz or .npy file.")
    if path.suffix in (".npz", ".npy"):
        return ArraySource(path)
    if zipfile.is_zipfile(path):
        return ZipSource(path)
    if tarfile.is_tarfile(path):
        return TarSource(path)
    hint = "Give the folder it lies in." if path.suffix.lower() in IMAGES else "If it should be one, it is cut short."
    raise ValueError(f"{path} is no folder, .zip, .tar, .npz or .npy. {hint}")


class FolderSource(ImageSource):
    """Image files below a folder; links are followed."""

    def __init__(self, path: Path, names: Sequence[str]):
        super().__init__(path, names, *_folder_classes(names, path))

    def read(self, index: int) -> bytes:
        return (self.path / self.names[index]).read_bytes()


class ZipSource(ImageSource):
    """The image files in a zip."""

    def __init__(self, path: Path):
        self._zip = zipfile.ZipFile(path)
        files = [info for info in self._zip.infolist() if not info.is_dir()]
        if locked := [info.filename for info in files if info.flag_bits & 1]:
            raise ValueError(f"{path}: {locked[0]} is encrypted; unpack the archive and give the folder.")
        names = _pictures(sorted(info.filename for info in files), path)
        super().__init__(path, names, *_folder_classes(names, path))

    def read(self, index: int) -> bytes:
        try:
            return self._zip.read(self.names[index])
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"{self.path}: {self.names[index]} cannot be read ({error}).") from error


class TarSource(ImageSource):
    """The image files in one tar, or in the `archives` of a folder; read in any order through an index of offsets."""

    def __init__(self, path: Path, archives: Sequence[str] = ("",)):
        self._archives = [path / name for name in archives]
        prefixes = [f"{name}/" if name else "" for name in archives]
        places: dict[str, tuple[int, int, int]] = {}
        for number, archive in enumerate(self._archives):
            for name, place in _tar_index(archive):
                if prefixes[number] + name in places:
                    raise ValueError(f"{archive} holds {name} twice; rename one of the two.")
                places[prefixes[number] + name] = (number, *place)
        names = _pictures(sorted(places), path)
        self._places = np.array([places[name] for name in names], dtype=np.int64)
        numbers = {name.removesuffix(".cls"): place for name, place in places.items() if name.endswith(".cls")}
        if numbers:
            super().__init__(path, names, *self._numbered_classes(names, numbers))
        else:
            inside = [name[len(prefixes[places[name][0]]) :] for name in names]
            super().__init__(path, names, *_folder_classes(inside, path))

    def read(self, index: int) -> bytes:
        return self._read(*self._places[index].tolist())

    def _read(self, archive: int, start: int, size: int) -> bytes:
        with open(self._archives[archive], "rb") as file:
            file.seek(start)
            return file.read(size)

    def _numbered_classes(
        self, names: Sequence[str], numbers: Mapping[str, tuple[int, int, int]]
    ) -> tuple[Tensor, list[str]]:
        """Labels from the `.cls` files: a sample's key is its path up to the first dot of the file name."""
        keys = [re.sub(r"\.[^/]*$", "", name) for name in names]
        if len(set(keys)) < len(keys):
            raise ValueError(f"Sample {_repeated(keys)} of a tar has several images; pack one image a sample.")
        if missing := [name for name, key in zip(names, keys, strict=True) if key not in numbers]:
            raise ValueError(
                f"{len(missing)} image(s), such as {missing[0]}, have no .cls file although others have one."
            )
        texts = {key: self._read(*numbers[key]).strip() for key in keys}
        if bad := [key for key, text in texts.items() if not re.fullmatch(rb"[0-9]{1,9}", text)]:
            raise ValueError(f"{bad[0]}.cls holds {texts[bad[0]][:40]!r}; expected a class number, 0 or more.")
        labels = torch.tensor([int(text) for text in texts.values()])
        return labels, _number_names(labels)


class ArraySource(ImageSource):
    """uint8 images of one size in an `.npz` or `.npy`, mapped from the disk. Never unpickles."""

    def __init__(self, path: Path):
        arrays = _arrays(path)
        images = arrays["images"] if "images" in arrays else arrays["arr_0"]
        if images.dtype != np.uint8:
            raise ValueError(
                f"{path}: images are {images.dtype}; expected uint8 in 0..255: (255 * x).round() of [0, 1]."
            )
        if images.ndim == 3:
            images = images[..., None]
        elif images.ndim == 4 and images.shape[3] not in (1, 3):
            images = np.moveaxis(images, 1, 3)
        if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
            raise ValueError(f"{path}: images come out as [n, h, w, c] = {list(images.shape)}; expected {LAYOUTS}.")
        labels = arrays.get("labels", arrays.get("arr_1"))
        if labels is None:
            labels = np.zeros(len(images), np.int64)
        if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or labels.min() < 0:
            raise ValueError(
                f"{path}: labels are {labels.dtype} of shape {list(labels.shape)}; expected one integer, 0 or more, "
                f"for each of the {len(images)} images."
            )
        self._images = images
        names = [f"images[{row}]" for row in range(len(images))]
        classes = torch.from_numpy(labels.astype(np.int64))
        super().__init__(path, names, classes, _number_names(classes))

    def read(self, index: int) -> NDArray[np.uint8]:
        pixels = self._images[index]
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


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


def _walk(folder: Path) -> Iterator[str]:
    """Every file below a folder, as a path relative to it; a link back to a folder above is an error."""
    open_folders: list[tuple[Path, tuple[Path, ...]]] = [(folder, (folder.resolve(),))]
    while open_folders:
        current, above = open_folders.pop()
        for entry in os.scandir(current):
            if _is_litter(entry.name):
                continue
            path = Path(entry.path)
            if not entry.is_dir():
                yield path.relative_to(folder).as_posix()
            elif (real := path.resolve()) in above:
                raise ValueError(f"{path} links to {real}, which holds it; remove the link.")
            else:
                open_folders.append((path, (*above, real)))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in LITTER


def _repeated(names: Sequence[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _number_names(labels: Tensor) -> list[str]:
    """Names of classes that only have numbers: "0" to the largest label."""
    highest = int(labels.max())
    if highest >= MOST_CLASSES:
        raise ValueError(
            f"A class number is {highest}; expected numbers below {MOST_CLASSES}. Renumber the classes from 0."
        )
    return [str(label) for label in range(highest + 1)]


def _pictures(names: Sequence[str], path: Path, also: str = "") -> list[str]:
    """The names of images, in order. Raises ValueError for a file of a kind that is neither image nor note."""
    kept, unknown = [], []
    for name in names:
        parts, suffix = name.split("/"), PurePosixPath(name).suffix.lower()
        if any(map(_is_litter, parts)) or suffix in NOTES:
            continue
        (kept if suffix in IMAGES or suffix == also else unknown).append(name)
    if unknown:
        raise ValueError(
            f"{path} holds {len(unknown)} file(s) of unknown kind, such as {unknown[0]}. Known images are "
            f"{' '.join(IMAGES)}; text beside them may be {' '.join(NOTES)}. Move the others away."
        )
    if not kept:
        raise ValueError(f"{path} holds no image among its {len(names)} file(s); known are {' '.join(IMAGES)}.")
    if len(set(kept)) < len(kept):
        raise ValueError(f"{path} holds {_repeated(kept)} twice; rename one of the two.")
    return kept


def _folder_classes(names: Sequence[str], path: Path) -> tuple[Tensor, list[str]]:
    """Labels from the first folder below what all names share; class names in sorted order."""
    folders = [name.split("/")[:-1] for name in names]
    shared = len(os.path.commonprefix([min(folders), max(folders)]))
    classes = [folder[shared] if len(folder) > shared else None for folder in folders]
    found = sorted({name for name in classes if name is not None})
    if not found:
        return torch.zeros(len(names), dtype=torch.int64), ["all"]
    if None in classes:
        raise ValueError(
            f"{path} mixes images inside and outside of class folders: {names[classes.index(None)]} lies beside the "
            f"folder '{found[0]}'. Put every image into the folder of its class, or all into one folder."
        )
    number = {name: label for label, name in enumerate(found)}
    return torch.tensor([number[name] for name in classes if name is not None]), found


def _tar_index(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (offset, size)) of every file in a tar. Raises ValueError when it is compressed, cut short or odd."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  (forget: a large archive would fill memory)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(f"{path}: {member.name} is a link or a sparse file; pack plain files.")
                yield member.name.removeprefix("./"), (member.offset_data, member.size)
            if tar.offset >= path.stat().st_size:
                raise tarfile.ReadError("it has no end mark")
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is cut short, or compressed, or no tar ({error}). Fetch it again; unpack a .tar.gz to a .tar."
        ) from error


def _arrays(path: Path) -> dict[str, NDArray]:
    """The images and labels in an `.npz` or `.npy`, mapped rather than read."""
    try:
        if path.suffix == ".npy":
            return {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = ("images", "labels") if "images" in members else ("arr_0", "arr_1")
            if wanted[0] not in members:
                raise ValueError(f"it holds {sorted(members)}, and none is called 'images' or 'arr_0'")
            return {name: _mapped(archive, members[name]) for name in wanted if name in members}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read as a NumPy file of plain numbers ({error}). Save it with "
            "numpy.savez(path, images=..., labels=...); pickled objects are refused."
        ) from error


def _mapped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray:
    """One array of an `.npz` as a memory map: of the file itself, or of an unpacked copy that goes with the process."""
    file: IO[bytes]
    with archive.open(info) as member:
        if info.compress_type == zipfile.ZIP_STORED:
            file = open(archive.filename or "", "rb")  # noqa: SIM115 (the map keeps its own handle)
            file.seek(info.header_offset + 26)
            name, extra = np.frombuffer(file.read(4), "<u2").tolist()
            file.seek(name + extra, os.SEEK_CUR)
        else:
            file = tempfile.TemporaryFile()  # noqa: SIM115
            shutil.copyfileobj(member, file, 1 << 20)
            file.seek(0)
    with file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds pickled objects")
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")
