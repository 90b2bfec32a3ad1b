"""Keeping encoders in balance: the gated controller, uniform weights, and no balance at all, on digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from irdm.controller import ControllerConfig
from irdm.experiments.base import DIGITS, SCORE_COLUMNS, Claim, Setting, Study, Table, TrainCell, on_fashion
from irdm.experiments.draw import bars, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 60.0
GATED, UNIFORM, NONE = "gated Lagrangian", "uniform weights", "no balance"


def cells(scale: float, setting: Setting = DIGITS) -> dict[str, TrainCell]:
    """Without balance the raw distances are summed: neither normalised by their own value nor weighted."""
    arms = {
        GATED: setting.run(controller=ControllerConfig()),
        UNIFORM: setting.run(controller=ControllerConfig(kind="uniform")),
        NONE: setting.run(controller=ControllerConfig(kind="uniform"), self_normalise=False),
    }
    return {name: TrainCell(config, core_seconds=setting.seconds(SECONDS) * scale) for name, config in arms.items()}


def figure(table: Table, folder: Callable[[str, int], Path]) -> Figure:
    """Bars of the ratios."""
    fig, ((axis,),) = grid(1, 1, size=6, height=3.2)
    columns = [("sw_held_in", "held in"), ("sw_held_out", "held out"), ("sw_unseen", "unseen"), ("mmd", "MMD")]
    bars(axis, table, [GATED, UNIFORM, NONE], columns)
    axis.set_ylabel("ratio (real = 1)")
    axis.legend(frameon=False, fontsize=8, ncols=4)
    return fig


def claims(table: Table) -> list[Claim]:
    """The gated controller against each alternative."""
    gated = table[GATED]["sw"]
    found = []
    for name in (UNIFORM, NONE):
        other = table[name]["sw"]
        text = f"The gated controller is at least as good as {name}"
        ours = f"{gated} against {other}"
        paper = "the controller is part of the ImageNet recipe; text to image uses uniform weights"
        found.append(Claim(text, paper, ours, gated.mean <= other.mean + other.spread))
    gated_cost, uniform_cost = table[GATED]["core_seconds"], table[UNIFORM]["core_seconds"]
    text = "Encoders at their floor are not run again, which saves time"
    ours = f"{gated_cost} core-seconds against {uniform_cost} of a budget of {SECONDS:.0f}"
    return [*found, Claim(text, "not reported", ours, gated_cost.mean < uniform_cost.mean)]


STUDY = Study(
    name="controller",
    title="the gated controller against uniform weights and against none, on digits",
    question="Does the balance of the battery matter?",
    columns=SCORE_COLUMNS | {"steps": "steps", "core_seconds": "core-seconds"},
    cells=cells,
    figure=figure,
    claims=claims,
    notes=f"{SECONDS:.0f} core-seconds of training a run. The gate stops at the score of fresh real images, so a gated "
    "run stays near 1 where the others go on below it, towards the training images.",
)
ON_FASHION = on_fashion(STUDY, cells)
