"""Any single representation can be gamed: one encoder alone driven below its real floor, and the battery beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from irdm.controller import ControllerConfig
from irdm.evaluation import Result
from irdm.experiments.base import (
    DIGITS,
    SCORE_COLUMNS,
    Claim,
    Numbers,
    Setting,
    Study,
    Table,
    TrainCell,
    on_fashion,
    scores,
)
from irdm.experiments.distance import one_encoder
from irdm.experiments.draw import bars, grid
from irdm.log import read_log
from irdm.run import read_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 60.0
ALONE = ("content", "bands")
BATTERY = "battery"


def cells(scale: float, setting: Setting = DIGITS) -> dict[str, TrainCell]:
    """Two encoders alone, never released at the floor, and the whole battery under its controller."""
    runs = {
        f"{name} alone": TrainCell(
            setting.run(battery=one_encoder(name), controller=ControllerConfig(kind="uniform")),
            measure,
            setting.seconds(SECONDS) * scale,
        )
        for name in ALONE
    }
    return runs | {BATTERY: TrainCell(setting.run(), measure, setting.seconds(SECONDS) * scale)}


def alone(table: Table) -> list[str]:
    """The rows of one encoder."""
    return [row for row in table if row != BATTERY]


def measure(run: Path, result: Result | None) -> Numbers:
    """The scores, and the training distance over its real floor: mean over the last fifth of the log and encoders."""
    assert result is not None
    floors = read_record(run)["floors"]
    lines = [line["scores"] for line in read_log(run / "metrics.jsonl")[0]]
    tail = lines[-max(1, len(lines) // 5) :]
    ratios = [line[name] / floor for line in tail for name, floor in floors.items()]
    return scores(result.scores) | {"floor_ratio": float(np.mean(ratios))}


def figure(table: Table, folder: Callable[[str, int], Path]) -> Figure:
    """Above: what each trained network draws, beside real images. Below: what trained encoders and the others say."""
    fig, (pictures, charts) = grid(2, 4, size=2.9)
    names = [*alone(table), BATTERY]
    for axis, name in zip(pictures, [*names, "real"], strict=True):
        arrays = np.load(folder(name if name != "real" else BATTERY, 0) / "samples.npz")
        images = arrays["real" if name == "real" else "generated"][:, 0]
        labels = arrays["real_captions" if name == "real" else "generated_captions"]
        images = np.pad(images, ((0, 0), (1, 1), (1, 1)))
        rows = [np.concatenate(list(images[labels == label][:8]), axis=1) for label in np.unique(labels)[::2]]
        axis.imshow(np.concatenate(rows), cmap="gray_r", interpolation="nearest")
        axis.set(xticks=[], yticks=[], title=name)
        axis.spines[:].set_visible(False)
    panels = [
        ("floor_ratio", "training distance / real floor"),
        ("sw_held_in", "SW ratio, encoders that train"),
        ("sw_held_out", "SW ratio, encoders that do not"),
        ("accuracy", "label accuracy"),
    ]
    for axis, (column, title) in zip(charts, panels, strict=True):
        bars(axis, table, names, [(column, title)])
        axis.set_title(title)
        axis.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    return fig


def claims(table: Table) -> list[Claim]:
    """Below the floor alone, worse on the others; the battery repairs it."""
    found = []
    whole = table[BATTERY]["sw_held_out"]
    for name in alone(table):
        row = table[name]
        ours = f"{row['floor_ratio']} of its floor; held-out SW ratio {row['sw_held_out']}, battery {whole}"
        holds = row["floor_ratio"].mean < 1 and row["sw_held_out"].mean > whole.mean + whole.spread
        text = f"{name} goes below its real floor while the other encoders see worse images than the battery's"
        found.append(Claim(text, "even DINOv2 alone falls below the real score while images stay fake", ours, holds))
    return found


STUDY = Study(
    name="gaming",
    title="one encoder alone, driven below its real floor, beside the battery, on digits",
    question="Can a single representation be trusted?",
    columns={"floor_ratio": "distance / floor"} | SCORE_COLUMNS | {"steps": "steps"},
    cells=cells,
    figure=figure,
    claims=claims,
    notes=f"{SECONDS:.0f} core-seconds of training a run. Held out are all others where one trains alone, "
    "and those that the battery holds out.",
)
ON_FASHION = on_fashion(STUDY, cells)
