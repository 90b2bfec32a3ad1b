"""A network pretrained on ImageNet beside the local encoders and in their place, at equal seconds, on digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from irdm.controller import ControllerConfig
from irdm.encoders import LiteLocalBatteryConfig, LocalBatteryConfig
from irdm.evaluation import Result
from irdm.experiments.base import DIGITS, Claim, Numbers, Setting, Study, Table, TrainCell, on_fashion, scores
from irdm.experiments.draw import bars, grid, logarithmic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 60.0
PRETRAINED = "lite0"
JUDGES = LiteLocalBatteryConfig().held_out
LOCAL, ALONE, BOTH = "local", "lite", "lite+local"


def cells(scale: float, setting: Setting = DIGITS) -> dict[str, TrainCell]:
    """Three batteries under the same judges, with uniform weights: a gate would stop the small one at its floor."""
    battery = setting.recipe().battery
    assert isinstance(battery, LocalBatteryConfig)
    trained = {LOCAL: battery.held_in, ALONE: (PRETRAINED,), BOTH: (*battery.held_in, PRETRAINED)}
    return {
        name: TrainCell(
            setting.run(battery=LiteLocalBatteryConfig(held_in=names), controller=ControllerConfig(kind="uniform")),
            measure,
            setting.seconds(SECONDS) * scale,
        )
        for name, names in trained.items()
    }


def measure(run: Path, result: Result | None) -> Numbers:
    """The scores, and the SW ratio by each judge."""
    assert result is not None
    judged = result.scores["sw_ratio"].encoders
    return scores(result.scores) | {name: judged[name].value for name in JUDGES}


def figure(table: Table, folder: Callable[[str, int], Path]) -> Figure:
    """Bars of every judge."""
    fig, ((axis,),) = grid(1, 1, size=6, height=3.2)
    bars(axis, table, [LOCAL, ALONE, BOTH], [("sw_held_out", "all judges"), *((name, name) for name in JUDGES)])
    axis.set_ylabel("SW ratio (real = 1)")
    logarithmic(axis)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return fig


def claims(table: Table) -> list[Claim]:
    """What the pretrained network adds, and what it does alone."""
    rows = {name: table[name]["sw_held_out"] for name in (LOCAL, ALONE, BOTH)}
    found = []
    for name, text in (
        (BOTH, "A pretrained network beside the local encoders makes better pictures at equal seconds"),
        (ALONE, "A pretrained network in place of the local encoders makes better pictures at equal seconds"),
    ):
        paper = "each representation added helps those held out (ImageNet, up to ten)"
        ours = f"held out, {name}: {rows[name]}, {LOCAL}: {rows[LOCAL]}"
        found.append(Claim(text, paper, ours, rows[name].mean < rows[LOCAL].mean))
    return found


STUDY = Study(
    name="pretrained",
    title="local encoders, a network pretrained on ImageNet, and both, judged by four others, on digits",
    question="Does a pretrained encoder train better pictures?",
    columns={
        "sw_held_in": "held in",
        "sw_held_out": "held out",
        **{name: name for name in JUDGES},
        "sw_unseen": "unseen",
        "neighbour": "neighbour",
        "accuracy": "accuracy",
        "steps": "steps",
    },
    cells=cells,
    figure=figure,
    claims=claims,
    notes=f"{SECONDS:.0f} core-seconds of training a run: a costlier battery takes fewer steps. {PRETRAINED} is "
    "EfficientNet-Lite0 up to its block 8; no arm trains a judge, of which squeezenet is pretrained too.",
)
ON_FASHION = on_fashion(STUDY, cells)
