"""Figures in one style: matplotlib's objects without its global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from irdm.experiments.base import Table, Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3467c2", "#dd8033", "#3a9259", "#c8413b", "#7d5ba6", "#8a8a8a"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)


def grid(rows: int, columns: int, size: float = 3.0, height: float | None = None) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `rows` x `columns` axes, each `size` inches wide and `height` high. Raises ValueError without
    matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure

    fig = Figure(figsize=(columns * size, rows * (height or size)), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.title.set_fontsize(10)
        axis.xaxis.label.set_fontsize(9)
        axis.yaxis.label.set_fontsize(9)
    return fig, [list(row) for row in axes]


def require_matplotlib() -> None:
    """Raises ValueError when matplotlib, which only the figures of studies need, is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "The figures of a study need matplotlib. Install it: pip install -c constraints.txt '.[experiments]'"
        ) from error


def curve(axis: Axes, x: Sequence[float], values: Sequence[Values], label: str, colour: str) -> None:
    """Means over the seeds, with bars of one standard deviation."""
    means, spreads = [v.mean for v in values], [v.spread for v in values]
    axis.errorbar(x, means, yerr=spreads, label=label, color=colour, marker="o", ms=3.5, lw=1.4, capsize=2)


def logarithmic(axis: Axes) -> None:
    """A logarithmic ordinate with plain numbers at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def bars(axis: Axes, table: Table, rows: Sequence[str], columns: Sequence[tuple[str, str]], real: bool = True) -> None:
    """Groups of bars: a group for each row, a bar for each (column, heading); a line at 1, where real data lies."""
    width = 0.8 / len(columns)
    for i, (column, heading) in enumerate(columns):
        values = [table[row][column] for row in rows]
        x = [k + (i - (len(columns) - 1) / 2) * width for k in range(len(rows))]
        spread = [v.spread for v in values]
        axis.bar(x, [v.mean for v in values], width * 0.94, yerr=spread, label=heading, color=COLOURS[i], capsize=2)
    if real:
        axis.axhline(1, color="0.3", lw=0.8, ls="--")
    axis.set_xticks(range(len(rows)), rows, fontsize=8)
