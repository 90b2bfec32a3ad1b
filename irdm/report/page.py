"""The report: a run directory or an evaluation in, one self-contained HTML page out. No request leaves the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from irdm.evaluation import Result
from irdm.files import write_atomic
from irdm.metrics.score import Estimate, Score
from irdm.report.charts import Axis, Mark, Series, Step, interval, ladder, lines, number, ruler, score, strips
from irdm.report.pictures import gallery, latest_grid, pairs
from irdm.report.read import Contents, Row, read

GROUPS = {"held_out": ("Held out", "out"), "held_in": ("Held in", "in"), "mean": ("All encoders", "all")}
ARROWS = {"lower": "↓", "higher": "↑", "real": "="}
LARGEST = 5_000_000  # bytes of a page
SHORT = 200  # characters of a value in a list of facts


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run directory or an evaluation and return its path.

    Every score of result.json is shown, whatever it is; a run without a result gives a page that says so, with what
    there is. Raises ValueError when the folder is neither or holds a broken file (see `irdm.report.read.read`), OSError
    when the page cannot be written.
    """
    contents = read(Path(folder))
    page = _page(contents)
    if contents.program and len(page) > LARGEST:
        note = f"With the generator in it this page would have {len(page) / 1e6:.1f} MB, so it is left out."
        page = _page(replace(contents, program=None, notes=[*contents.notes, note]))
    path = contents.folder / "report.html"
    write_atomic(path, page.encode("utf-8", "replace"))  # a file name can hold bytes that no text has
    return path


def _page(contents: Contents) -> str:
    return PAGES.get_template("template.html").render(_context(contents))


def fact(value: object) -> str:
    """Anything that JSON can hold, shortly, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number(value)
    if value is None:
        return "–"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHORT else text[:SHORT] + "…"


def duration(seconds: float) -> str:
    """Seconds for people: 4.2 s, 2 min 31 s, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{number(minutes // 60)} h {minutes % 60:02d} min"


def chance(p: float | None) -> str:
    """A p-value."""
    return "not known" if p is None else "below 0.0001" if p < 0.0001 else f"{p:.2g}"


PAGES = Environment(
    loader=PackageLoader("irdm.report", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
PAGES.filters |= {
    "chance": chance,
    "number": number,
    "score": score,
    "interval": interval,
    "fact": fact,
    "duration": duration,
}


def _context(contents: Contents) -> dict[str, Any]:
    result, log = contents.result, contents.log
    shown = gallery(contents.samples)
    return {
        "name": _name(contents),
        "run": contents.config is not None,
        "result": result,
        "verdict": result.verdict if result else None,
        "headline": None,
        "scores": None,
        "banners": [*(result.warnings if result else ()), *contents.notes],
        "last": log[-1] if log else None,
        "planned": contents.config.get("steps") if contents.config else None,
        "command": result.command if result else f"irdm train --config {contents.folder / 'config.json'}",
        "gallery": shown,
        "latest": None if shown else latest_grid(contents.folder / "samples"),
        "pairs": pairs(contents.samples),
        "drawing": contents.program.page() if contents.program else None,
        "curves": _curves(log, contents.reference.floors),
        "texts": contents.texts,
        "facts": _facts(contents),
    } | (_scores(result, contents.held_out) if result else {})


def _name(contents: Contents) -> str:
    """A run is called what its folder is, an evaluation what its images are."""
    source = contents.result.source if contents.result and contents.config is None else {}
    found = source.get("name") or source.get("path")
    return (Path(found).name if isinstance(found, str) else "") or contents.folder.resolve().name


def _facts(contents: Contents) -> dict[str, Mapping[str, object]]:
    """Lists of facts by title, for those who repeat or doubt a number."""
    found: dict[str, Mapping[str, object]] = {"Real images": contents.reference.sizes}
    if result := contents.result:
        found = {"Images": result.source, "Reference": result.reference} | found
        found |= {"Training": result.training or {}, "Seeds": result.seeds, "Versions": result.versions}
    return {title: rows for title, rows in found.items() if rows}


def _scores(result: Result, held_out: Sequence[str]) -> dict[str, Any]:
    """What the page says of whatever scores there are, told apart by their shape alone; the first with a mean leads.

    `tabled` have a mean over encoders, `columns` both that and encoders, `apart` encoders only.
    """
    scores = list(result.scores.values())
    tabled = [one for one in scores if one.mean or one.held_in or one.held_out]
    columns = [one for one in tabled if one.encoders]
    headline = (columns or tabled or [None])[0]
    total = result.seconds.get("total") or sum(result.seconds.values()) or 1.0
    return {
        "headline": headline,
        "scores": {"tabled": tabled, "columns": columns, "apart": [one for one in scores if one not in tabled]},
        "encoders": list(dict.fromkeys(name for one in columns for name in one.encoders)),
        "held_out": held_out,
        "groups": [
            (name, kind, estimate) for key, (name, kind) in GROUPS.items() if (estimate := getattr(headline, key, None))
        ],
        "rulers": _rulers(headline, held_out) if headline else {},
        "ladder": _ladder(result),
        "arrows": ARROWS,
        "note_keys": {
            one.label: [
                k for k in dict.fromkeys(k for part in one.encoders.values() for k in part.notes) if k != "name"
            ]
            for one in scores
        },
        "seconds": [
            (name, spent, min(max(100 * spent / total, 0), 100))
            for name, spent in result.seconds.items()
            if name != "total"
        ],
        "total": total,
    }


def _rulers(one: Score, held_out: Sequence[str]) -> dict[str, Markup | None]:
    """The leading score by group and by encoder, each beside its measured control; the line is the first group's."""
    first = one.held_out or one.mean or one.held_in
    control = first.control if first else None

    def mark(name: str, kind: str, estimate: Estimate) -> Mark:
        return Mark(name, estimate.value, kind, estimate.ci95, estimate.control)

    groups = [mark(name, kind, found) for key, (name, kind) in GROUPS.items() if (found := getattr(one, key))]
    if control is not None:
        groups.append(Mark("Real control", control, "real"))
    marks = [mark(name, "out" if name in held_out else "in", estimate) for name, estimate in one.encoders.items()]
    marks.sort(key=lambda m: (m.kind != "out", m.value))
    return {
        "groups": ruler(groups, one.label, control=control),
        "encoders": ruler(marks, f"{one.label} by encoder", control=control, row=30) if marks else None,
    }


def _ladder(result: Result) -> Markup | None:
    """How far known defects are from real, and these images among them, to the encoders of the headline."""
    found, said = result.ladder, result.verdict
    if found is None or said is None:
        return None
    rows: dict[str, list[tuple[str, float, str]]] = {}
    for rung in found.rungs:
        if (ratio := found.mean(rung.excess, said.group)) is not None:
            rows.setdefault(rung.defect, []).append((f"{rung.level:g}", ratio, rung.says))
    title = f"Distance from real of known defects, as {GROUPS[said.group][0].lower()} encoders see it"
    return ladder([Step(name, levels) for name, levels in rows.items()], said.ratio, title) if rows else None


def _curves(log: Sequence[Row], floors: Mapping[str, float | None]) -> dict[str, Any]:
    """Everything that was logged over steps; what was not logged is left out."""

    def over(get: Callable[[Row], float | None]) -> list[tuple[int, float | None]]:
        return [(row.step, get(row)) for row in log]

    def by_name(field: str) -> dict[str, list[tuple[int, float | None]]]:
        names = dict.fromkeys(name for row in log for name in getattr(row, field) or {})
        return {name: over(lambda row, name=name: (getattr(row, field) or {}).get(name)) for name in names}

    def plain(field: str, alt: str, **options: Any) -> Markup | None:
        points = over(lambda row: getattr(row, field))
        found = any(value is not None for _, value in points)
        return lines([Series(alt, points)], f"{alt} over training steps.", **options) if found else None

    scores = by_name("scores")
    shared = Axis.around([*(v for points in scores.values() for _, v in points), *floors.values()], log=True)
    panels = [
        {
            "name": name,
            "last": points[-1][1],
            "floor": floors.get(name),
            "svg": lines(
                [Series(name, points, "in")],
                f"Score of {name} over training steps, log axis, with its floor at {number(floors.get(name))}.",
                y=shared,
                level=floors.get(name),
                height=110,
                ticks=3,
            ),
        }
        for name, points in scores.items()
    ]
    weights = [Series(name, points) for name, points in by_name("weights").items()]
    checks = [(row.step, row.check) for row in log if row.check]
    alarms = [step for step, check in checks if check.alarm]
    sides = [
        Series(key, [(step, getattr(check, key)) for step, check in checks], key[5:]) for key in ("held_in", "held_out")
    ]
    quick = [one for one in sides if any(value is not None for _, value in one.points)]
    spoken = ", ".join(f"{one.name.replace('_', ' ')} {score(one.points[-1][1])}" for one in quick)
    alt = f"Quick check over training steps: last {spoken}. Alarms: {len(alarms)}."
    return {
        "scores": panels,
        "weights": strips(weights, "Weight of each encoder over training steps.") if weights else None,
        "check": lines(quick, alt, log=True, flags=alarms, height=220) if quick else None,
        "alarms": alarms,
        "checks": len(checks),
        "rest": [
            (field, title, said, chart)
            for field, title, said, options in (
                ("grad_norm", "Gradient norm", "before clipping, log axis", {"log": True}),
                ("lr", "Learning rate", "by step", {"zero": True}),
                ("images_per_second", "Speed", "generated images a second", {"zero": True}),
                ("loss", "Training loss", "the weighted sum of self-normalised scores", {}),
            )
            if (chart := plain(field, title, **options))
        ],
    }
