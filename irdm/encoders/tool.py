"""What `irdm encoders list | check | fetch` say and do about the weights of the panel and of `lite`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from irdm.encoders.families import PanelEntry
from irdm.encoders.lite import LITE, Shipped
from irdm.encoders.local import ENCODERS, LiteBatteryConfig
from irdm.encoders.panel import METRICS_ONLY, PANEL, entries
from irdm.encoders.weights import weights_folder

HEADER = ("encoder", "split", "model", "input", "pooling", "dim", "GB", "licence", "gated", "sha256", "weights")


def list_encoders(names: Sequence[str] = (), folder: Path | None = None) -> Iterator[str]:
    """A table, one line an encoder (by default of all); says whether files are there, and does not read them."""
    names = names or [*PANEL, *METRICS_ONLY, *LITE]
    shown, shipped = entries([name for name in names if name not in LITE]), [name for name in names if name in LITE]
    rows = [HEADER, *(_row(entry, folder) for entry in shown), *(_shipped_row(name, LITE[name]) for name in shipped)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if shown:
        total = sum(size for size in {entry.shares or entry.name: entry.weights.gigabytes for entry in shown}.values())
        yield f"\n{total:.1f} GB in all; files lie in {weights_folder(folder)}/<encoder>, or in the hub's cache."
    for name in shipped:
        entry = LITE[name]
        yield f"\n{name}: {entry.origin}; in the package {entry.package}, which the extra lite brings."


def _row(entry: PanelEntry, folder: Path | None) -> tuple[str, ...]:
    source, weights = entry.weights, entry.located(folder)
    known = weights.expected().get(source.files[-1].name)
    there = all(path.is_file() for path in weights.locate().values())
    return (
        *(entry.name, _side(entry), entry.model, str(entry.resolution)),
        *(entry.pooling, str(entry.dim), f"{source.gigabytes:.2f}", source.licence),
        *("yes" if source.gated else "no", known[:12] if known else "at fetch", "here" if there else "to fetch"),
    )


def _shipped_row(name: str, entry: Shipped) -> tuple[str, ...]:
    try:
        found = "here" if entry.locate() else ""
    except ValueError:
        found = "to install"
    side = "held out" if name in LiteBatteryConfig().held_out else "trains"
    return (
        *(name, side, entry.model, "any", "mean, log spread", f"<= {ENCODERS[name][1]}"),
        *(f"{entry.gigabytes:.2f}", entry.licence, "no", entry.sha256[:12], found),
    )


def _side(entry: PanelEntry) -> str:
    return "metrics" if entry.name in METRICS_ONLY else "held out" if entry.held_out else "trains"


def check_encoders(names: Sequence[str] = (), folder: Path | None = None) -> Iterator[tuple[str, bool, str]]:
    """(encoder, whether its weights are there and right, what was found or how to mend it), reading every byte."""
    for name in names or PANEL:
        try:
            yield name, True, _verified(name, folder)
        except ValueError as error:
            yield name, False, str(error)


def _verified(name: str, folder: Path | None) -> str:
    if name in LITE:
        return f"{LITE[name].verify()} sha256 {LITE[name].sha256[:16]}..."
    weights = entries([name])[0].located(folder)
    paths, digests = weights.verify(), weights.expected()
    return ", ".join(f"{path} sha256 {digests[file][:16]}..." for file, path in paths.items())


def fetch_encoders(
    names: Sequence[str] = (), folder: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> None:
    """Download what is missing or altered, record every sha256; all of them by default. One failure stops no other.

    Those of `lite` come with their packages, and are compared alone. Raises ValueError that lists every encoder whose
    weights could not be had, and why.
    """
    problems = []
    for name in names or PANEL:
        try:
            if name in LITE:
                LITE[name].verify()
            else:
                entries([name])[0].located(folder).fetch(say)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("not all weights are there:\n  " + "\n  ".join(problems))
