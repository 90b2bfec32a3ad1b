"""metrics.jsonl: what a run says of its steps, one JSON object a line, each with a checksum of itself."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irdm.files import write_atomic
from irdm.progress import Say, duration, silent
from irdm.tracker import Tracker
from irdm.tracker import tracker as open_tracker


class MetricsLog:
    """Appends lines. Those after the resumed step are dropped first, since they come again; damaged ones are named."""

    def __init__(
        self, path: Path, step: int, write: bool = True, say: Say = silent, tracker: Tracker | None = None
    ) -> None:
        """`step`: of the last line that stays. `write`: whether anything is written, also to the tracker."""
        self.path, self.enabled = path, write
        self._track = open_tracker(tracker, path.parent, step) if write and tracker else None
        if write and path.exists():
            lines, notes = read_log(path)
            for note in notes:
                say(f"warning: {note}")
            write_atomic(path, "".join(_text(line) + "\n" for line in lines if line["step"] <= step))

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one object, which has a `step`; NaN and infinity are written as null, which JSON knows."""
        if self.enabled:
            line = _jsonable(line)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_text(line) + "\n")
            if self._track:
                self._track(line)


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a log, and a note for each that is damaged and left out. No file has no lines."""
    lines, notes = [], []
    content = path.read_bytes() if path.exists() else b""
    for number, raw in enumerate(content.splitlines(), start=1):
        line: dict[str, Any] = {}
        try:
            line = json.loads(raw)
            claimed = line.pop("crc")
            intact = claimed == _checksum(line) and isinstance(line["step"], int)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            intact = False
        if intact:
            lines.append(line)
        elif number == content.count(b"\n") + 1:
            notes.append(f"The last line of {path.name} was cut short, as by a kill; it is left out.")
        else:
            notes.append(f"Line {number} of {path.name} is damaged and left out; the run itself is not affected.")
    return lines, notes


class Pace:
    """How fast this call trains, and when the terminal last heard of it."""

    def __init__(self, step: int, rollout: int) -> None:
        self._step, self._rollout, self._began, self._said = step, rollout, time.monotonic(), 0.0

    def __call__(self, done: int) -> float:
        """Images a second since the start."""
        return (done - self._step) * self._rollout / (time.monotonic() - self._began)

    @property
    def silent(self) -> float:
        """Seconds since the last line; many before the first."""
        return time.monotonic() - self._said

    def line(self, line: Mapping[str, Any], floors: Mapping[str, float | None], steps: int) -> str:
        """`progress_line`, which is said now."""
        self._said = time.monotonic()
        return progress_line(line, floors, steps, self._rollout)


def progress_line(line: Mapping[str, Any], floors: Mapping[str, float | None], steps: int, rollout: int) -> str:
    """What the terminal shows of a line: the scores over their floors, the speed and the time left, a check."""
    done, known = line["step"], {name: floor for name, floor in floors.items() if floor}
    text = f"step {done}/{steps}"
    if known:
        text += f"  score/floor {sum(line['scores'][name] / floor for name, floor in known.items()) / len(known):.2f}"
    rate = line["images_per_second"]
    text += f"  {rate:,.0f} images/s  {duration((steps - done) * rollout / rate)} left"
    if check := line.get("check"):
        text += "  SW ratio " + ", ".join(f"{k.replace('_', '-')} {check[k]:.2f}" for k in check if k != "alarm")
        text += "  ALARM: the encoders that train are being gamed" if check["alarm"] else ""
    return text


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps({**line, "crc": _checksum(line)})


def _checksum(line: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(line).encode()):08x}"


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
