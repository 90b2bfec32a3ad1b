"""Images in Parquet files, as data sets are published on the Hugging Face hub: a column of image files, perhaps labels.

A row group is the least that Parquet lets one read. Rows are read in random order, so recent groups are kept; a set
larger than what is kept is read fast when its groups are small (a hundred images), and slowly when they are large.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irdm.data.image_source import ImageSource, number_names, printable, within_limit

IMAGE, LABEL, CAPTION = "image", ("label", "labels", "cls", "class"), ("caption", "text", "prompt")
KEPT = 2**29  # bytes of row groups that a process keeps


class ParquetSource(ImageSource):
    """The images in one Parquet file, or in those of a folder, in the order of files and rows.

    Images are in the column of binary values, or of {"bytes", "path"}; where there are several, in `image`.
    Classes are in an integer column `label`, with the names that the file tells. Raises ValueError for another layout,
    files of unlike columns, a file that is damaged, a row without an image or a class, and without pyarrow.
    """

    def __init__(self, path: Path, files: Sequence[str] = ("",), classes: bool = True):
        self.path, self._made = path, (path, tuple(files), classes)
        self._files = [path / name if name else path for name in files]
        opened = [_opened(file) for file in self._files]
        self._column, self._nested = _image_column(opened[0].schema_arrow, path)
        if odd := [at for at, one in enumerate(opened) if not one.schema_arrow.equals(opened[0].schema_arrow)]:
            raise ValueError(f"{self._files[odd[0]]} has other columns than {self._files[0]}; give sets of one kind.")
        groups = [(at, group) for at, one in enumerate(opened) for group in range(one.num_row_groups)]
        sizes = [opened[at].metadata.row_group(group).num_rows for at, group in groups]
        self._groups, self._starts = groups, np.cumsum([0, *sizes])
        if not self._starts[-1]:
            raise ValueError(f"{path} holds no image: its Parquet files have no rows.")
        counts = [(name or path.name, one.metadata.num_rows) for name, one in zip(files, opened, strict=True)]
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()
        labels, names = self._classes(opened[0].schema_arrow) if classes else (None, [])
        super().__init__(path, [f"{name}[{row}]" for name, count in counts for row in range(count)], labels, names)

    def __reduce__(self):
        return ParquetSource, self._made  # another process opens the files itself

    def where(self, row: int) -> str:
        """The file and the number of the row in it."""
        return printable(f"{self.path.parent if self.path.is_file() else self.path}/{self.names[row]}")

    def read(self, row: int) -> bytes:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        value = self._group(number)[row - int(self._starts[number])].as_py()
        data = value["bytes"] if self._nested and value else value
        if not isinstance(data, bytes):
            raise ValueError(f"The image {self.where(row)} is missing from its row. Repair it or take it out.")
        within_limit(len(data), self.where(row))
        return data

    def captions(self) -> list[str | None]:
        """The text of each image. Raises ValueError when no column is called caption, text or prompt."""
        names = _opened(self._files[0]).schema_arrow.names
        if (found := _named(names, CAPTION)) is None:
            raise ValueError(
                f"{self.path} has no captions: it has {', '.join(names)}, expected {' or '.join(CAPTION)}."
            )
        return self._whole(found)

    def _group(self, number: int) -> Any:
        """The images of a row group; one thread reads it, the others wait."""
        with self._lock:
            if number not in self._kept:
                at, group = self._groups[number]
                self._kept[number] = _column(self._files[at], group, self._column)
                while len(self._kept) > 1 and sum(column.nbytes for column in self._kept.values()) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]

    def _classes(self, schema: Any) -> tuple[Tensor | None, list[str]]:
        from pyarrow import types

        column = _named([field.name for field in schema if types.is_integer(field.type)], LABEL)
        if column is None:
            return None, []
        labels = self._whole(column)
        if bad := [row for row, label in enumerate(labels) if label is None or label < 0]:
            raise ValueError(
                f"{self.path}: row {bad[0]} has the class {labels[bad[0]]} in '{column}', and {len(bad)} rows have no "
                "class number, 0 or more. Take these out, or rename the column to go without classes."
            )
        names = number_names(max(labels), self.path)
        told = _told_names(schema, column)
        return torch.tensor(labels), told if len(told) >= len(names) else names

    def _whole(self, column: str) -> list[Any]:
        return [value for at, group in self._groups for value in _column(self._files[at], group, column).to_pylist()]


def _named(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of the known names that is there."""
    return next((name for name in known if name in names), None)


def _opened(file: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{file} needs the package pyarrow ({error}): pip install 'irdm[ray]'.") from None
    try:
        return parquet.ParquetFile(file, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as Parquet ({error}). Fetch it again.") from None


def _column(file: Path, group: int, column: str) -> Any:
    """A column of a row group."""
    try:
        return _opened(file).read_row_group(group, columns=[column]).column(column)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged in row group {group} ({error}). Fetch it again.") from None


def _image_column(schema: Any, path: Path) -> tuple[str, bool]:
    """The name of the column of images, and whether its values are {"bytes", "path"}."""
    from pyarrow import types

    def nested(kind: Any) -> bool:
        return types.is_struct(kind) and kind.get_field_index("bytes") >= 0

    def holds(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind) or nested(kind)

    found = {field.name: nested(field.type) for field in schema if holds(field.type)}
    if len(found) != 1 and IMAGE not in found:
        raise ValueError(
            f"{path} has the columns {', '.join(f'{field.name} ({field.type})' for field in schema)}; expected image "
            f"files in one column of binary values or of bytes and path, or in one called '{IMAGE}'."
        )
    name = IMAGE if IMAGE in found else next(iter(found))
    return name, found[name]


def _told_names(schema: Any, column: str) -> list[str]:
    """The names of the classes that the Hugging Face library left in a file."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
        return [printable(str(name)) for name in told]
    except (KeyError, TypeError, ValueError):
        return []
