"""What `irdm encoders list | check | fetch` say and do about the weights of the panel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from irdm.encoders.families import PanelEntry
from irdm.encoders.panel import METRICS_ONLY, PANEL, entries
from irdm.encoders.weights import weights_folder

HEADER = ("encoder", "split", "model", "input", "pooling", "dim", "GB", "licence", "gated", "sha256", "weights")


def list_encoders(names: Sequence[str] = (), folder: Path | None = None) -> Iterator[str]:
    """A table, one line an encoder (by default of all); says whether files are there, and does not read them."""
    rows: list[tuple[str, ...]] = [HEADER]
    for entry in entries(names or [*PANEL, *METRICS_ONLY]):
        source, weights = entry.weights, entry.located(folder)
        known = weights.expected().get(source.files[-1].name)
        rows.append(
            (
                *(entry.name, _side(entry), entry.model, str(entry.resolution)),
                *(entry.pooling, str(entry.dim), f"{source.gigabytes:.2f}", source.licence),
                *("yes" if source.gated else "no", known[:12] if known else "at fetch"),
                "here" if all(path.is_file() for path in weights.locate().values()) else "to fetch",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    shown = entries(names or [*PANEL, *METRICS_ONLY])
    total = sum(size for size in {entry.shares or entry.name: entry.weights.gigabytes for entry in shown}.values())
    yield f"\n{total:.1f} GB in all; files lie in {weights_folder(folder)}/<encoder>, or in the hub's cache."


def _side(entry: PanelEntry) -> str:
    return "metrics" if entry.name in METRICS_ONLY else "held out" if entry.held_out else "trains"


def check_encoders(names: Sequence[str] = (), folder: Path | None = None) -> Iterator[tuple[str, bool, str]]:
    """(encoder, whether its weights are there and right, what was found or how to mend it), reading every byte."""
    for entry in entries(names or list(PANEL)):
        weights = entry.located(folder)
        try:
            paths = weights.verify()
        except ValueError as error:
            yield entry.name, False, str(error)
        else:
            digests = weights.expected()
            yield entry.name, True, ", ".join(f"{path} sha256 {digests[name][:16]}..." for name, path in paths.items())


def fetch_encoders(
    names: Sequence[str] = (), folder: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> None:
    """Download what is missing or altered, record every sha256; all of them by default. One failure stops no other.

    Raises ValueError that lists every encoder whose weights could not be had, and why.
    """
    problems = []
    for entry in entries(names or list(PANEL)):
        try:
            entry.located(folder).fetch(say)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("not all weights are there:\n  " + "\n  ".join(problems))
