"""Captions from files: lines of text, JSON lines, tables, COCO's annotations, and texts beside the images.

| file | what is read |
|---|---|
| .txt | a caption a line, of no image |
| .jsonl | an object a line: the image in one of the keys IMAGE, the caption in one of CAPTION |
| .csv, .tsv | a table with a head of the same names |
| .json | COCO's `images` and `annotations`: the captions of each image in the order of the file |
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from irdm.data.archives import TarSource
from irdm.data.image_source import ImageSource, printable
from irdm.data.parquet import CAPTION, ParquetSource

IMAGE = ("file_name", "image", "filename", "path")
FOUND = ("captions.jsonl", "metadata.jsonl", "captions.csv", "metadata.csv", "captions.tsv", "captions.json")
"""Files of captions that are looked for in a folder of images."""
NAMED = 3  # images of one message

Rows = list[tuple[str | None, str]]


def read_captions(path: Path) -> Rows:
    """(image or None, caption) of each row of a file, in order.

    Raises ValueError naming the line for what cannot be read, and for an empty caption.
    """
    readers: dict[str, Callable[[str, Path], Iterator[tuple[str | None, str]]]] = {
        ".txt": _lines, ".jsonl": _objects, ".csv": _table, ".tsv": _table, ".json": _coco,
    }  # fmt: skip
    if path.suffix not in readers:
        raise ValueError(f"{path} is no file of captions; known are {', '.join(readers)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"There is no {path}; give a file of captions: {', '.join(readers)}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from None
    rows = [(image, caption.strip()) for image, caption in readers[path.suffix](text, path)]
    if empty := [number for number, (_, caption) in enumerate(rows, 1) if not caption or "\0" in caption]:
        raise ValueError(f"{path}: the caption of row {empty[0]} is empty or holds a character zero. Mend it.")
    if not rows:
        raise ValueError(f"{path} holds no caption.")
    return rows


def captions_of(source: ImageSource, file: Path | None = None) -> tuple[list[str], int]:
    """The caption of each image of a source, in its order, and how many further captions the images have.

    They come from `file`; else, of tars, from the .txt or .json of each sample, and of Parquet, from a column; else
    from one of FOUND in the folder; else from a .txt beside each image. The first caption of an image is its caption.

    Raises ValueError, with the names of some, for images without a caption and captions without an image.
    """
    where = printable(str(source.path))
    if file is None and isinstance(source, TarSource):
        return [_of_sample(source, name) for name in source.names], 0
    if file is None and isinstance(source, ParquetSource):
        return [_text((text or "").encode(), source.where(row)) for row, text in enumerate(source.captions())], 0
    if file is None:
        there = [name for name in FOUND if (source.path / name).is_file()]
        if len(there) > 1:
            raise ValueError(f"{where} holds {' and '.join(there)}; say which has the captions: --data.captions.")
        file = source.path / there[0] if there else None
    if file is None:
        return [_beside(source, name) for name in source.names], 0
    rows = read_captions(file)
    if any(image is None for image, _ in rows):
        raise ValueError(f"{file} has captions without images. Give rows of {IMAGE[0]} and {CAPTION[0]}, as .jsonl.")
    found: dict[str, str] = {}
    for image, caption in rows:
        assert image is not None
        found.setdefault(image.removeprefix("./"), caption)
    names = set(source.names)
    if lost := [image for image in found if image not in names]:
        raise ValueError(_of(f"{len(lost)} captions of {file} are of images that are not in {where}", lost))
    if bare := [name for name in source.names if name not in found]:
        raise ValueError(_of(f"{len(bare)} of {len(names)} images of {where} have no caption in {file}", bare))
    return [found[name] for name in source.names], len(rows) - len(found)


def canonical(text: str) -> str:
    """A caption in lower case, without punctuation, with single blanks: what two spellings of one prompt share."""
    return " ".join(re.sub(r"[^\w\s]|_", " ", text.lower()).split())


def overlap(pool: Sequence[str], prompts: Sequence[str]) -> dict[str, Any]:
    """How many prompts of an evaluation are among the captions of a pool, up to spelling, and their share of its rows.

    Returns `prompts`, how many different ones there are; `found`, those in the pool; `share`, of the rows of the pool.
    """
    asked, known = {canonical(text) for text in prompts}, [canonical(text) for text in pool]
    rows = sum(text in asked for text in known)
    return {"prompts": len(asked), "found": len(asked & set(known)), "share": rows / max(1, len(known))}


def _lines(text: str, path: Path) -> Iterator[tuple[None, str]]:
    for line in text.splitlines():
        yield None, line


def _objects(text: str, path: Path) -> Iterator[tuple[str | None, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is no JSON ({error}).") from None
            yield _row(row, f"{path}: line {number}")


def _table(text: str, path: Path) -> Iterator[tuple[str | None, str]]:
    try:
        table = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        for number, row in enumerate(table, 1):
            yield _row(row, f"{path}: row {number}")
    except csv.Error as error:
        raise ValueError(f"{path} is no table ({error}). Save it again, with quotes around texts.") from None


def _row(row: object, where: str) -> tuple[str | None, str]:
    fields = row if isinstance(row, Mapping) else {}
    caption = next((fields[key] for key in CAPTION if isinstance(fields.get(key), str)), None)
    image = next((fields[key] for key in IMAGE if isinstance(fields.get(key), str)), None)
    if caption is None:
        raise ValueError(
            f"{where} has no text in {', '.join(CAPTION)}; found {', '.join(map(str, fields)) or repr(row)}."
        )
    return image, caption


def _coco(text: str, path: Path) -> Iterator[tuple[str | None, str]]:
    try:
        body = json.loads(text)
        files = {image["id"]: str(image["file_name"]) for image in body["images"]}
        yield from [(files[note["image_id"]], str(note["caption"])) for note in body["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no COCO file of captions ({error!r}): expected `images` of id and file_name, and `annotations` "
            "of image_id and caption."
        ) from None


def _beside(source: ImageSource, name: str) -> str:
    path = source.path / PurePosixPath(name).with_suffix(".txt")
    if not path.is_file():
        raise ValueError(
            f"{printable(str(source.path / name))} has no caption: there is no {path.name} beside it, and none of "
            f"{', '.join(FOUND)} in {printable(str(source.path))}."
        )
    return _text(path.read_bytes(), str(path))


def _of_sample(source: TarSource, name: str) -> str:
    key = re.sub(r"\.[^/]*$", "", name)
    if (text := source.note(f"{key}.txt")) is not None:
        return _text(text, f"{source.path}/{key}.txt")
    if (body := source.note(f"{key}.json")) is not None:
        try:
            return _text(_row(json.loads(body), f"{source.path}/{key}.json")[1].encode(), f"{source.path}/{key}.json")
        except json.JSONDecodeError as error:
            raise ValueError(f"{source.path}/{key}.json is no JSON ({error}).") from None
    raise ValueError(f"{source.where(source.names.index(name))} has no caption: neither {key}.txt nor {key}.json.")


def _text(data: bytes, where: str) -> str:
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{printable(where)} is not UTF-8 ({error}).") from None
    if not text or "\0" in text:
        raise ValueError(f"{printable(where)} holds no caption. Write one, or take the image away.")
    return text


def _of(said: str, names: Sequence[str]) -> str:
    listed = ", ".join(map(printable, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
    return f"{said}: {listed}. Each image needs one caption, under its own path from there."
