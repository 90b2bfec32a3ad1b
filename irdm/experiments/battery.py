"""How many encoders it takes: 1, 2, 4 and 8 that train, judged by the same three that never do, on digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from irdm.controller import ControllerConfig
from irdm.encoders import LocalBatteryConfig
from irdm.experiments.base import DIGITS, SCORE_COLUMNS, Claim, Setting, Study, Table, TrainCell, on_fashion
from irdm.experiments.draw import BLUE, GREEN, ORANGE, curve, grid, logarithmic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 60.0
# Each as unlike those before as there is.
ORDER = ("content", "patches", "pixels", "bands", "pca", "tone", "gram", "parts")
SIZES = (1, 2, 4, 8)
SHOWN = (
    ("sw_held_in", "encoders that train", BLUE),
    ("sw_held_out", "held out", ORANGE),
    ("sw_unseen", "unseen", GREEN),
)


def row_name(size: int) -> str:
    """How the table calls a battery."""
    return f"{size} encoder{'s' if size > 1 else ''}"


def cells(scale: float, setting: Setting = DIGITS) -> dict[str, TrainCell]:
    """The first encoders of the order, with uniform weights: a gate would stop the small batteries at their floors."""
    return {
        row_name(size): TrainCell(
            setting.run(battery=LocalBatteryConfig(held_in=ORDER[:size]), controller=ControllerConfig(kind="uniform")),
            core_seconds=setting.seconds(SECONDS) * scale,
        )
        for size in SIZES
    }


def figure(table: Table, folder: Callable[[str, int], Path]) -> Figure:
    """A line a group of encoders, along the size."""
    fig, ((axis,),) = grid(1, 1, size=4.6, height=3.2)
    for column, label, colour in SHOWN:
        curve(axis, SIZES, [table[row_name(size)][column] for size in SIZES], label, colour)
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    axis.set(xlabel="encoders that train", ylabel="SW ratio (real = 1)")
    logarithmic(axis)
    axis.axhline(1, color="0.3", lw=0.8, ls="--")
    axis.legend(frameon=False, fontsize=8)
    return fig


def claims(table: Table) -> list[Claim]:
    """More encoders, better pictures to those that never trained."""
    rows = [table[row_name(size)]["sw_held_out"] for size in SIZES]
    ours = ", ".join(f"{size}: {row}" for size, row in zip(SIZES, rows, strict=True))
    best = min(rows, key=lambda row: row.mean)
    return [
        Claim(
            "The largest battery is the best to encoders that never train, within the spread",
            "each representation added helps those held out (ImageNet, up to ten)",
            ours,
            rows[-1].mean <= best.mean + best.spread,
        )
    ]


STUDY = Study(
    name="battery",
    title="1, 2, 4 and 8 encoders that train, judged by three others, on digits",
    question="How many representations does it take?",
    columns=SCORE_COLUMNS | {"steps": "steps"},
    cells=cells,
    figure=figure,
    claims=claims,
    notes=f"{SECONDS:.0f} core-seconds of training a run: a larger battery takes fewer steps. In this order: "
    f"{', '.join(ORDER)}.",
)
ON_FASHION = on_fashion(STUDY, cells)
