"""One ledger of everything that was measured, and the page that is written from it.

A line of `ledger.csv` is a quantity of an implementation of some work: its median, its 20th and 80th percentile, the
card or processor, the day, and the versions of irdm and PyTorch. Lines are appended and never changed; of several lines
of one quantity on one card the page shows the last.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

LEDGER = Path(__file__).with_name("ledger.csv")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MARK = "<!-- Below: written from benchmarks/ledger.csv by `python benchmarks/run.py --page`. -->"


class Entry(NamedTuple):
    """A line."""

    work: str
    implementation: str
    quantity: str
    median: float
    p20: float
    p80: float
    card: str
    date: str
    version: str


def entry(line: Sequence[str]) -> Entry:
    """A line as it was read. Raises ValueError for one that is none."""
    if len(line) != len(Entry._fields):
        raise ValueError(f"The ledger has a line of {len(line)} fields, expected {', '.join(Entry._fields)}: {line}")
    return Entry(*line[:3], *map(float, line[3:6]), *line[6:])


def read(path: Path = LEDGER) -> list[Entry]:
    """All lines, in order; none when there is no ledger yet."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        _, *lines = csv.reader(file)
    return [entry(line) for line in lines]


def append(entries: Iterable[Entry], path: Path = LEDGER) -> None:
    """Add lines at the end."""
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(Entry._fields)
        writer.writerows([[*e[:3], *(f"{number:.4g}" for number in e[3:6]), *e[6:]] for e in entries])


def tables(entries: Iterable[Entry]) -> str:
    """Markdown: by card and work a table, a row an implementation, a column a quantity."""
    cards: dict[str, dict[str, dict[str, dict[str, Entry]]]] = {}
    for e in entries:
        cards.setdefault(e.card, {}).setdefault(e.work, {}).setdefault(e.implementation, {})[e.quantity] = e
    lines = []
    for card, works in cards.items():
        lines += [f"## {card}", ""]
        for work, rows in works.items():
            quantities = list(dict.fromkeys(quantity for row in rows.values() for quantity in row))
            last = max((e for row in rows.values() for e in row.values()), key=lambda e: e.date)
            lines += [f"### {work}", "", f"| | {' | '.join(quantities)} |", "|---" * (1 + len(quantities)) + "|"]
            for name, row in rows.items():
                lines.append(f"| {name} | {' | '.join(_cell(row.get(quantity)) for quantity in quantities)} |")
            lines += ["", f"{last.date}; {last.version}.", ""]
    return "\n".join(lines)


def _cell(e: Entry | None) -> str:
    if e is None:
        return ""
    return f"{e.median:.3g}" if e.p20 == e.p80 else f"{e.median:.3g} ({e.p20:.3g} to {e.p80:.3g})"


def write_page(ledger: Path = LEDGER, page: Path = PAGE) -> None:
    """Put the tables of the ledger below the mark on the page."""
    head, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{page} has no line: {MARK}")
    page.write_text(f"{head}{MARK}\n\n{tables(read(ledger))}".rstrip() + "\n", encoding="utf-8")
