"""Quality against the rollout and against the number of landmarks, at equal computing time, on digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from irdm.experiments.base import DIGITS, SCORE_COLUMNS, Claim, Setting, Study, Table, TrainCell, on_fashion
from irdm.experiments.draw import BLUE, GREEN, ORANGE, curve, grid, logarithmic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 30.0  # on one core, for every run
ROLLOUTS = (64, 256, 512, 1024, 2048, 4096, 8192)
LANDMARKS, AT = (16, 64, 256), 1024  # and the rollout of these
MOST = 4096  # every training image is a landmark where there are fewer
SHOWN = (("sw_held_in", "held in", BLUE), ("sw_held_out", "held out", ORANGE), ("sw_unseen", "unseen", GREEN))


def cells(scale: float, setting: Setting = DIGITS) -> dict[str, TrainCell]:
    """Rollouts with the learning rate's own sqrt(N) rule, then landmarks."""
    preset = setting.recipe()

    def cell(rollout: int, landmarks: int) -> TrainCell:
        distance = preset.distance.model_copy(update={"landmarks": landmarks})
        return TrainCell(setting.run(rollout=rollout, distance=distance), core_seconds=setting.seconds(SECONDS) * scale)

    rollouts = {f"rollout {n}": cell(n, MOST) for n in ROLLOUTS}
    return rollouts | {f"landmarks {m}": cell(AT, m) for m in LANDMARKS}


def figure(table: Table, folder: Callable[[str, int], Path]) -> Figure:
    """Two panels: the rollout and the landmarks, each on a logarithmic axis."""
    fig, ((left, right),) = grid(1, 2, size=4.2, height=3.2)
    for column, label, colour in SHOWN:
        curve(left, ROLLOUTS, [table[f"rollout {n}"][column] for n in ROLLOUTS], label, colour)
        values = [table[f"landmarks {m}"][column] for m in LANDMARKS]
        whole = table[f"rollout {AT}"][column]
        curve(right, range(len(LANDMARKS) + 1), [*values, whole], label, colour)
    left.set_xscale("log", base=2)
    logarithmic(left)
    left.set(xlabel="rollout N", ylabel="SW ratio (real = 1)", title="equal time, learning rate ~ √N")
    right.set_xticks(range(len(LANDMARKS) + 1), [*(str(m) for m in LANDMARKS), f"{MOST} or all"])
    right.set(xlabel="landmarks", title=f"rollout {AT}")
    for axis in (left, right):
        axis.axhline(1, color="0.3", lw=0.8, ls="--")
        axis.legend(frameon=False, fontsize=8)
    return fig


def claims(table: Table) -> list[Claim]:
    """Where the optimum lies."""
    means = {n: table[f"rollout {n}"]["sw"] for n in ROLLOUTS}
    best = min(means, key=lambda n: means[n].mean)
    rollouts = Claim(
        "Quality climbs with the rollout to an optimum, and falls beyond it at equal time",
        "optimum above 2048 (ImageNet; 5120 is used)",
        f"best at {best}: {means[best]}; {ROLLOUTS[0]}: {means[ROLLOUTS[0]]}, {ROLLOUTS[-1]}: {means[ROLLOUTS[-1]]}",
        best not in (ROLLOUTS[0], ROLLOUTS[-1]),
    )
    few, many = table[f"landmarks {LANDMARKS[0]}"]["sw"], table[f"rollout {AT}"]["sw"]
    landmarks = Claim(
        "More landmarks are better",
        "4096 on ImageNet, 8192 for text to image",
        f"{LANDMARKS[0]}: {few}, {MOST} or all: {many}",
        many.mean < few.mean,
    )
    return [rollouts, landmarks]


STUDY = Study(
    name="batch",
    title="rollout 64 to 8192 and landmarks from 16 to all, at equal computing time, on digits",
    question="Which rollout, and how many landmarks?",
    columns=SCORE_COLUMNS | {"steps": "steps", "core_seconds": "core-seconds"},
    cells=cells,
    figure=figure,
    claims=claims,
    notes=f"A budget of {SECONDS:.0f} core-seconds of training a run, filled by the time of a first step; what the "
    "controller saves later is not spent. By default each of the 1198 train images is a landmark.",
)
ON_FASHION = on_fashion(STUDY, cells)
