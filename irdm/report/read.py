"""What a page is drawn from: a folder's files, checked field by field before any of it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from irdm.browser import FILE, Program, read_program
from irdm.evaluation import Result, read_result
from irdm.evaluation.pictures import SIDES
from irdm.files import read_json, read_manifest
from irdm.log import read_log

LARGEST = 1e100
"""No number of a run or a result comes near; beyond it a chart would overflow."""

Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Numbers = dict[str, Number | None]


class Part(BaseModel):
    """What the page uses of a JSON object; what else it holds is left alone."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Check(Part):
    """A quick check during training."""

    held_in: Number | None = None
    held_out: Number | None = None
    alarm: bool = False


class Row(Part):
    """A logged step."""

    step: Count
    loss: Number | None = None
    lr: Number | None = None
    grad_norm: Number | None = None
    images_per_second: Number | None = None
    skipped: Count | None = None
    scores: Numbers | None = None
    weights: Numbers | None = None
    check: Check | None = None


class RunReference(Part):
    """reference.json of a run."""

    floors: Numbers = {}
    sizes: dict[str, Count] = {}


class Judged(Part):
    """What result.json says of encoders beside its scores: protocol.real.held_out."""

    class Protocol(Part):
        class Real(Part):
            held_out: list[str] = []

        real: Real = Real()

    protocol: Protocol = Protocol()


Kind = TypeVar("Kind", bound=Part)


@dataclass(frozen=True)
class Contents:
    """What a folder holds. Pictures are uint8 [n, h, w, c]; whatever has not been written yet is empty or None."""

    folder: Path
    config: dict[str, Any] | None
    """None for an evaluation: it is no run."""
    reference: RunReference
    log: list[Row]
    result: Result | None
    held_out: list[str]
    """Encoders of the result that no generator was trained against."""
    samples: dict[str, NDArray]
    program: Program | None
    """The generator, for the page to draw with."""
    texts: dict[str, str]
    """Long JSON as it is shown, by title."""
    notes: list[str]


def read(folder: Path) -> Contents:
    """Read what a page can show of a run directory (it has a config.json) or of an evaluation (it has a result.json).

    Raises ValueError, naming the file, the field and how to mend it, when the folder is neither or a file is broken.
    Damaged lines of the log are left out, and `notes` says so.
    """
    config_path, result_path = folder / "config.json", folder / "result.json"
    is_run, is_judged = config_path.is_file(), result_path.is_file()
    if not (is_run or is_judged):
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise ValueError(
            f"{folder} is neither a run directory (with a config.json) nor an evaluation (with a result.json); found: "
            f"{found or 'nothing'}. Give a folder that `irdm train` or `irdm eval` wrote."
        )
    texts: dict[str, str] = {}
    config, reference, rows, notes, result, judged = None, RunReference(), [], [], None, Judged()
    if is_run:
        config = read_json(config_path, "Restore it from a copy.")
        texts["The whole configuration"] = _text(config, config_path)
        reference = _reference(folder / "reference.json")
        rows, notes = _log(folder / "metrics.jsonl")
    if is_judged:
        result = read_result(result_path)
        mend = "Repeat the `irdm eval` that wrote it."
        texts["The whole protocol"] = _text(
            {"protocol": result.protocol, "scores": {s.label: s.notes for s in result.scores.values() if s.notes}},
            result_path,
        )
        plain = result.model_dump(mode="json")
        judged = _checked(Judged, plain, str(result_path), mend)
        for field, number in _numbers(plain):
            if not abs(number) <= LARGEST:
                raise ValueError(f"{result_path}: {field} is beyond {LARGEST:g}, which no score can be. {mend}")
    held_out, samples = judged.protocol.real.held_out, _samples(folder / "samples.npz")
    program = read_program(folder / FILE)
    return Contents(folder, config, reference, rows, result, held_out, samples, program, texts, notes)


def _reference(path: Path) -> RunReference:
    if not path.is_file():
        return RunReference()
    mend = "Repeat the run's own `irdm train`, which writes it again."
    return _checked(RunReference, read_manifest(path, mend), str(path), mend)


def _log(path: Path) -> tuple[list[Row], list[str]]:
    """The logged steps in order; a step logged twice keeps its later line."""
    lines, notes = read_log(path)
    mend = "Delete that line (the page needs no step in particular) and write the report again."
    rows = [_checked(Row, line, f"{path}, row {number}", mend) for number, line in enumerate(lines, start=1)]
    return list({row.step: row for row in sorted(rows, key=lambda row: row.step)}.values()), notes


def _checked(kind: type[Kind], value: dict[str, Any], where: str, mend: str) -> Kind:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {field} is {str(first['input'])[:40]!r}: {first['msg']}. {mend}") from None


def _text(value: Any, path: Path) -> str:
    try:
        return json.dumps(value, indent=2, ensure_ascii=False)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be shown. Restore it from a copy.") from None


def _numbers(value: Any, field: str = "") -> Iterator[tuple[str, float]]:
    """Every number in plain JSON with the name of its field."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(part, f"{field}.{key}" if field else str(key))
    elif isinstance(value, (int, float)):
        yield field, value


def _samples(path: Path) -> dict[str, NDArray]:
    """The pictures of samples.npz with their captions; {} where there is none."""
    if not path.exists():
        return {}
    mend = "Run `irdm eval` again, which writes it anew."
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy's header parser have many words for "broken"
        raise ValueError(f"{path} cannot be read ({error!r}). {mend}") from None
    paired = SIDES if SIDES[0] in arrays else ()
    for pictures, beside in (
        ("generated", "generated_captions"),
        ("real", "real_captions"),
        *((side, None) for side in paired),
    ):
        array = arrays.get(pictures, np.empty(0))
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape[2:]:
            raise ValueError(
                f"{path}: {pictures} is {array.dtype} {array.shape}, expected uint8 [n, c, h, w] with c 1 or 3. {mend}"
            )
        arrays[pictures] = array.transpose(0, 2, 3, 1)
        captions = arrays.get(beside) if beside else None
        if beside and (captions is None or captions.dtype.kind != "U" or captions.shape != (len(array),)):
            raise ValueError(f"{path}: {beside} are not {len(array)} texts, one for each of {pictures}. {mend}")
    for side, other, *numbers in (
        (("judged", "copied", "judged_ratio", "judged_share"), ("fresh", "usual", "fresh_ratio")) if paired else ()
    ):
        count, known = len(arrays[side]), [arrays.get(name, np.empty(0)) for name in numbers]
        if len(arrays[other]) != count or any(n.shape != (count,) or not np.isfinite(n).all() for n in known):
            raise ValueError(f"{path}: {count} {side} images need as many {other} ones and finite numbers. {mend}")
    return arrays
