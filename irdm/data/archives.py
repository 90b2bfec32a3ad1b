"""Images in a zip and in tars: read in any order through an index, and never fewer than were packed.

An archive is refused, naming it and what is wrong, when its index does not account for all of it: a damaged entry would
otherwise pass for the end of the archive, and a data set would shrink without a word.
"""

from __future__ import annotations

import copy
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from irdm.data.image_source import (
    ImageSource,
    folder_classes,
    image_names,
    no_folder_is_empty,
    number_names,
    printable,
    repeated,
    within_limit,
)

TAR_END, TAR_PADDING = 2 * 512, 2**20  # bytes of zeros that end a tar, and most of them
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those whose unpacking can be stopped at a length


class ZipSource(ImageSource):
    """The image files in a zip."""

    def __init__(self, path: Path):
        self._zip = open_zip(path)
        files = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        no_folder_is_empty((info.filename for info in self._zip.infolist() if info.is_dir()), files, path)
        names = image_names(sorted(info.filename for info in self._zip.infolist() if not info.is_dir()), path)
        for name in names:
            within_limit(files[name].file_size, f"{path}/{name}")
        self._members = [files[name] for name in names]
        super().__init__(path, names, *folder_classes(names, path))

    def __reduce__(self):
        return ZipSource, (self.path,)  # another process opens the archive itself

    def read(self, row: int) -> bytes:
        info = self._members[row]
        try:
            return b"".join(member_blocks(self._zip, info))
        except MemoryError:
            raise
        except Exception as error:  # zlib, struct, zipfile and the system each have errors of their own
            raise ValueError(f"{self.where(row)} cannot be read ({error}). Pack or fetch the archive again.") from error


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip whose index is whole.

    Raises ValueError when it is cut short or damaged, and for members that are encrypted or packed in a rare way.
    """
    try:
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
        told = _told(path)
        if len(members) != told:
            raise ValueError(f"its index lists {len(members)} files, and its end mark tells of {told}")
        for info in members:
            if info.flag_bits & 1:
                raise ValueError(f"{printable(info.filename)} is encrypted; unpack the archive and give the folder")
            if info.compress_type not in COMPRESSIONS:
                raise ValueError(f"{printable(info.filename)} is neither stored nor deflated; pack it in that way")
            archive.open(info).close()  # compares its name with the one beside its content
    except MemoryError:
        raise
    except Exception as error:  # a damaged index leads into errors of every kind
        raise ValueError(f"{path} cannot be used: {error}. Pack or fetch it again.") from error
    return archive


def member_blocks(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of a member, a megabyte at a time; never more than its index tells, and at the end all of that.

    Raises ValueError, or an error of zipfile or zlib, for another length or checksum.
    """
    longer, size = copy.copy(info), 0
    longer.file_size += 1  # zipfile would cut a longer content to the told size, and compare the rest no more
    with archive.open(longer) as member:
        while block := member.read(2**20):
            if (size := size + len(block)) > info.file_size:
                break
            yield block
    if size != info.file_size:
        raise ValueError(f"{printable(info.filename)} is not the {info.file_size} bytes long that the archive tells")


def _told(path: Path) -> int:
    """How many files the end mark of a zip tells of."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2**17))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    (count,) = struct.unpack_from("<H", tail, end + 10)
    large = end - 20 - 56  # the mark of archives of more than 65,534 files, and its locator
    if count == 0xFFFF and large >= 0 and tail[large : large + 4] == b"PK\x06\x06":
        (count,) = struct.unpack_from("<Q", tail, large + 32)
    return count


class TarSource(ImageSource):
    """The image files in one tar, or in the `archives` of a folder."""

    def __init__(self, path: Path, archives: Sequence[str] = ("",), classes: bool = True):
        self._archives = [path / name for name in archives]
        prefixes = [f"{name}/" if name else "" for name in archives]
        places: dict[str, tuple[int, int, int]] = {}
        for number, archive in enumerate(self._archives):
            for name, place in _tar_index(archive):
                if prefixes[number] + name in places:
                    raise ValueError(f"{archive} holds {printable(name)} twice; rename one of the two.")
                places[prefixes[number] + name] = (number, *place)
        names = image_names(sorted(places), path)
        self._places = np.array([places[name] for name in names], dtype=np.int64)
        for name in names:
            within_limit(places[name][2], f"{path}/{name}")
        self._notes = {} if classes else {name: p for name, p in places.items() if name.endswith((".txt", ".json"))}
        numbers = {name.removesuffix(".cls"): place for name, place in places.items() if name.endswith(".cls")}
        if not classes:
            super().__init__(path, names, None, ())
        elif numbers:
            super().__init__(path, names, *self._numbered_classes(names, numbers, path))
        else:
            inside = [name[len(prefixes[places[name][0]]) :] for name in names]
            super().__init__(path, names, *folder_classes(inside, path))

    def read(self, row: int) -> bytes:
        return self._read(*self._places[row].tolist())

    def note(self, name: str) -> bytes | None:
        """A .txt or .json beside the images, where folders are no classes; None when it is not there."""
        return self._read(*self._notes[name]) if name in self._notes else None

    def _read(self, archive: int, start: int, size: int) -> bytes:
        with open(self._archives[archive], "rb") as file:
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise ValueError(f"{self._archives[archive]} was cut short after it had been opened.")
        return data

    def _numbered_classes(
        self, names: Sequence[str], numbers: Mapping[str, tuple[int, int, int]], path: Path
    ) -> tuple[Tensor, list[str]]:
        """Labels from the `.cls` files: a sample's key is its path up to the first dot of the file name."""
        keys = [re.sub(r"\.[^/]*$", "", name) for name in names]
        if len(set(keys)) < len(keys):
            raise ValueError(
                f"Sample {printable(repeated(keys))} of a tar has several images; pack one image a sample."
            )
        if missing := [name for name, key in zip(names, keys, strict=True) if key not in numbers]:
            raise ValueError(
                f"{len(missing)} image(s), such as {printable(missing[0])}, have no .cls file although others have one."
            )
        texts = {key: self._class_text(*numbers[key]) for key in keys}
        if bad := [key for key, text in texts.items() if not re.fullmatch(rb"[0-9]{1,9}", text)]:
            found = texts[bad[0]][:40]
            raise ValueError(f"{printable(bad[0])}.cls holds {found!r}; expected a class number, 0 or more.")
        labels = torch.tensor([int(text) for text in texts.values()])
        return labels, number_names(int(labels.max()), path)

    def _class_text(self, archive: int, start: int, size: int) -> bytes:
        return self._read(archive, start, min(size, 100)).strip()


def _tar_index(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (offset, size)) of every file in a tar.

    Raises ValueError when it is compressed, cut short, damaged or odd, or a folder in it is empty. A damaged header
    looks like the end to tarfile, so what follows the last file must be the end mark, zeros and nothing else; and no
    more of them than programs write: a download that stopped may have room for the rest.
    """
    folders, files = [], []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  (forget: a large archive would fill memory)
                if member.size < 0:
                    raise ValueError(f"{printable(member.name)} is of {member.size} bytes")
                name = member.name.removeprefix("./")
                if member.isdir():
                    folders.append(name)
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(f"{printable(member.name)} is a link or a sparse file; pack plain files")
                files.append(name)
                yield name, (member.offset_data, member.size)
            end = tar.offset
        with open(path, "rb") as file:
            left = file.seek(0, 2) - file.seek(end)
            if file.read(TAR_PADDING).strip(b"\0"):
                raise ValueError(f"the header at byte {end} is damaged")
            if not TAR_END <= left <= TAR_PADDING:
                raise ValueError(
                    f"it is cut short: {left} bytes of zeros are behind its last file, where a mark ends it"
                )
    except MemoryError:
        raise
    except Exception as error:  # a damaged header leads tarfile into errors of every kind
        raise ValueError(
            f"{path} cannot be used: {error}. Pack or fetch it again; a compressed tar must be unpacked to a .tar."
        ) from error
    no_folder_is_empty(folders, files, path)
