"""Where images come from: a folder, a zip, webdataset tars, Parquet or a NumPy array, all as one numbered list."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from irdm.data.archives import TarSource, ZipSource
from irdm.data.image_source import (
    IMAGES,
    LARGEST,
    ImageSource,
    folder_classes,
    image_names,
    is_litter,
    printable,
    within_limit,
)
from irdm.data.numpy_file import ArraySource
from irdm.data.parquet import ParquetSource

__all__ = ["FolderSource", "ImageSource", "open_source"]


def open_source(path: Path, classes: bool = True) -> ImageSource:
    """The images at `path`, of whatever kind is found there.

    - a folder of images, or of one folder a class (the first folder below what all images share is the class), none
      of them empty;
    - a `.zip` laid out in the same way;
    - a webdataset `.tar`, or a folder of them: `key.cls` beside `key.jpg` holds the class number, else folders tell;
    - a `.parquet`, or a folder of them (`irdm.data.parquet`);
    - an `.npz` with `images` (or `arr_0`) and perhaps integer `labels` (or `arr_1`), or an `.npy` of images.

    Without `classes` folders mean nothing, and only a folder of images, a `.tar`, a `.parquet` and folders of them will
    do.

    Raises ValueError when there is no image, when something is damaged, or when it cannot tell what something is: no
    file is passed over except hidden ones and text that lies beside the images.
    """
    path = Path(path)
    if path.is_dir():
        names = image_names(sorted(_walk(path)), path, also=(".tar", ".parquet"))
        for suffix, source in ((".tar", TarSource), (".parquet", ParquetSource)):
            archives = [name for name in names if name.endswith(suffix)]
            if archives and len(archives) < len(names):
                raise ValueError(
                    f"{path} holds both images and {suffix} archives, such as {archives[0]}; give one of the two."
                )
            if archives:
                return source(path, archives, classes)
        return FolderSource(path, names, classes)
    if not path.is_file():
        raise ValueError(f"There is no {path}; give a folder of images, a .zip, .tar, .parquet, .npz or .npy file.")
    if path.suffix == ".tar" or _starts_as_tar(path):
        return TarSource(path, classes=classes)
    if path.suffix == ".parquet":
        return ParquetSource(path, classes=classes)
    if not classes:
        raise ValueError(f"{path} has no captions beside its images; give a folder, a .tar or a .parquet.")
    if path.suffix in (".npz", ".npy"):
        return ArraySource(path)
    if zipfile.is_zipfile(path):
        return ZipSource(path)
    single = path.suffix.lower() in IMAGES
    hint = "Give the folder it lies in." if single else "If it should be one, it is cut short or compressed: unpack it."
    raise ValueError(f"{path} is no folder, .zip, .tar, .parquet, .npz or .npy. {hint}")


def _starts_as_tar(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(tarfile.BLOCKSIZE)[257:262] == b"ustar"


class FolderSource(ImageSource):
    """Image files below a folder; links are followed."""

    def __init__(self, path: Path, names: Sequence[str], classes: bool = True):
        super().__init__(path, names, *(folder_classes(names, path) if classes else (None, ())))

    def read(self, row: int) -> bytes:
        with open(self.path / self.names[row], "rb") as file:
            data = file.read(LARGEST + 1)
        within_limit(len(data), self.where(row))
        return data


def _walk(folder: Path) -> Iterator[str]:
    """Every file below a folder, as a path relative to it.

    Raises ValueError for an empty folder, a link back to a folder above, and what is no plain file: opening it could
    wait for ever.
    """
    open_folders: list[tuple[Path, tuple[Path, ...]]] = [(folder, (folder.resolve(),))]
    while open_folders:
        current, above = open_folders.pop()
        entries = [entry for entry in os.scandir(current) if not is_litter(entry.name)]
        if not entries and current != folder:
            raise ValueError(
                f"{printable(str(current))} is an empty folder: a class without images? Fill it, or remove it."
            )
        for entry in entries:
            path = Path(entry.path)
            if entry.is_file():
                yield path.relative_to(folder).as_posix()
            elif not entry.is_dir():
                raise ValueError(f"{printable(entry.path)} is {_what(path)}; expected plain files. Take it away.")
            elif (real := path.resolve()) in above:
                raise ValueError(f"{printable(entry.path)} links to {printable(str(real))}, which holds it; remove it.")
            else:
                open_folders.append((path, (*above, real)))


def _what(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"a link that leads nowhere ({error.strerror})"
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "no file")
