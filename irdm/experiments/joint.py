"""Joint matching of images with their labels against matching the images alone, on digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from irdm.experiments.base import DIGITS, SCORE_COLUMNS, Claim, Setting, Study, Table, TrainCell
from irdm.experiments.draw import bars, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 60.0


def cells(scale: float, setting: Setting = DIGITS) -> dict[str, TrainCell]:
    """The preset with and without its condition."""
    arms = {"joint": setting.run(joint=True), "marginal": setting.run(joint=False)}
    return {name: TrainCell(config, core_seconds=setting.seconds(SECONDS) * scale) for name, config in arms.items()}


def figure(table: Table, folder: Callable[[str, int], Path]) -> Figure:
    """Accuracy on the left, ratios on the right."""
    fig, ((left, right),) = grid(1, 2, size=3.6, height=3.0)
    bars(left, table, ["joint", "marginal"], [("accuracy", "label accuracy")], real=False)
    columns = [("sw_held_in", "held in"), ("sw_held_out", "held out"), ("sw_unseen", "unseen")]
    bars(right, table, ["joint", "marginal"], columns)
    left.set(title="label accuracy", ylim=(0, 1))
    right.set(title="SW ratio (real = 1)", ylim=(0, 1.25 * max(table[row]["sw_unseen"].mean for row in table)))
    right.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    return fig


def claims(table: Table) -> list[Claim]:
    """Labels need the joint objective; images do not suffer from it."""
    joint, marginal = table["joint"], table["marginal"]
    accuracy = Claim(
        "Only joint matching ties an image to its condition",
        "GenEval 0.826 joint, 0.801 marginal (from a generator that follows its prompt already)",
        f"accuracy {joint['accuracy']} joint, {marginal['accuracy']} marginal",
        joint["accuracy"].mean > marginal["accuracy"].mean,
    )
    ratio = Claim(
        "The images are as close to real as without it",
        "not reported",
        f"SW ratio {joint['sw']} joint, {marginal['sw']} marginal",
        joint["sw"].mean <= marginal["sw"].mean + max(joint["sw"].spread, marginal["sw"].spread),
    )
    return [accuracy, ratio]


STUDY = Study(
    name="joint",
    title="joint against marginal matching on digits",
    question="Does the distance have to see the condition?",
    columns=SCORE_COLUMNS | {"steps": "steps"},
    cells=cells,
    figure=figure,
    claims=claims,
    notes=f"{SECONDS:.0f} core-seconds of training a run, from nothing.",
)
