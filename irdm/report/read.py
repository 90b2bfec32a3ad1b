"""Read a run directory into memory, and say precisely what is wrong with it when something is."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ARRAYS = ("generated", "generated_labels", "real", "real_labels", "neighbours", "neighbour_distance")


@dataclass(frozen=True)
class Run:
    """What a run directory holds. Pictures are uint8 [n, h, w, c]; whatever the run has not written yet is empty."""

    folder: Path
    config: dict[str, Any]
    reference: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)


def read_run(folder: Path) -> Run:
    """Read every file the report draws from (`docs/design.md`, "A run directory").

    Raises ValueError, naming the file and how to mend it, when the folder is no run directory or a file is broken.
    A last line of metrics.jsonl without its line end was cut by a kill: it is left out, and `notes` says so.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise ValueError(
            f"{folder} is not a run directory: it has no config.json (found: {found or 'nothing'}). "
            "Give the folder that `irdm train` wrote, such as runs/digits."
        )
    notes: list[str] = []
    result = _json(folder / "result.json", missing={})
    if result and not isinstance(result.get("sw_ratio"), dict):
        raise ValueError(
            f"{folder / 'result.json'} has no sw_ratio (found: {', '.join(result)}). Run `irdm eval` again."
        )
    return Run(
        folder=folder,
        config=_json(folder / "config.json"),
        reference=_json(folder / "reference.json", missing={}),
        result=result,
        metrics=_metrics(folder / "metrics.jsonl", notes),
        samples=_samples(folder / "samples" / "evaluation.npz"),
        notes=notes,
    )


def _json(path: Path, missing: dict | None = None) -> dict[str, Any]:
    if missing is not None and not path.exists():
        return missing
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Restore it, or run `irdm train` again.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; a JSON object was expected. Restore it.")
    return value


def _metrics(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The logged steps in order; a step logged twice (after a resume) keeps its later line."""
    if not path.exists():
        return []
    lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    tail = lines.pop()  # empty when the file ends with a line end
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate([*lines, tail], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, TypeError, KeyError):
            if line is tail:
                notes.append(f"The last line of metrics.jsonl (line {number}) was cut short by a stop and is left out.")
                continue
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with a step, found {line[:80]!r}. "
                "Delete that line (the report needs no step in particular) and run `irdm report` again."
            ) from None
    return [rows[step] for step in sorted(rows)]


def _samples(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    mend = "Run `irdm eval` on this run to write it again."
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}). {mend}") from None
    for name in ("generated", "real", "neighbours"):
        if arrays[name].dtype != np.uint8 or arrays[name].ndim != 4:
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise ValueError(f"{path}: {name} is {found}; uint8 [n, c, h, w] was expected. {mend}")
        if arrays[name].shape[1] in (1, 3):
            arrays[name] = arrays[name].transpose(0, 2, 3, 1)
    count = len(arrays["generated"])
    for name in ("generated_labels", "neighbours", "neighbour_distance"):
        if len(arrays[name]) != count:
            raise ValueError(f"{path}: {name} has {len(arrays[name])} rows for {count} generated images. {mend}")
    if len(arrays["real_labels"]) != len(arrays["real"]):
        raise ValueError(f"{path}: {len(arrays['real_labels'])} labels for {len(arrays['real'])} real images. {mend}")
    return arrays
