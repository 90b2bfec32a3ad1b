"""Three networks under one recipe at equal seconds: convolutions, a perceptron, a patch transformer, on clothes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from irdm.evaluation import Result
from irdm.experiments.base import FASHION, SCORE_COLUMNS, Claim, Numbers, Study, Table, TrainCell, scores
from irdm.experiments.draw import bars, grid, logarithmic
from irdm.experiments.peers import milliseconds
from irdm.generators import MLPConfig, PixelMeanFlowConfig
from irdm.run import load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 60.0
CONVOLUTIONS, PERCEPTRON, TRANSFORMER = "convolutions", "perceptron", "transformer"
OTHERS = {
    PERCEPTRON: MLPConfig(),
    TRANSFORMER: PixelMeanFlowConfig(width=64, depth=6, patch=4),  # 49 tokens of 28 x 28
}
SHARES = (1.0, 0.5, 0.25)  # of the preset's learning rate, which is that of the convolutions: the best stands for them


def cells(scale: float) -> dict[str, TrainCell]:
    """The preset's network at the preset's learning rate, the others at several."""
    seconds, lr = FASHION.seconds(SECONDS) * scale, FASHION.recipe().lr
    runs = {CONVOLUTIONS: TrainCell(FASHION.run(), measure, seconds)}
    for name, network in OTHERS.items():
        for share in SHARES:
            run = FASHION.run(generator=network, lr=share * lr)
            runs[f"{name}, learning rate x {share:g}"] = TrainCell(run, measure, seconds)
    return runs


def measure(run: Path, result: Result | None) -> Numbers:
    """The scores, the size of the network and the time of an image."""
    assert result is not None
    loaded = load_run(run)
    size = sum(parameter.numel() for parameter in loaded.generator.parameters())
    return scores(result.scores) | {"size": size / 1e6, "ms_per_image": milliseconds(loaded.generator, loaded.dataset)}


def best(table: Table) -> list[str]:
    """A row a network, at its best learning rate by the held-out ratio."""
    return [
        min((row for row in table if row.startswith(name)), key=lambda row: table[row]["sw_held_out"].mean)
        for name in (CONVOLUTIONS, *OTHERS)
    ]


def figure(table: Table, folder: Callable[[str, int], Path]) -> Figure:
    """Above: what each draws, ten of a class. Below: ratios."""
    fig, ((*pictures, chart),) = grid(1, 4, size=3.4)
    rows = best(table)
    for axis, row in zip(pictures, rows, strict=True):
        arrays = np.load(folder(row, 0) / "samples.npz")
        images, labels = arrays["generated"][:, 0], arrays["generated_captions"]
        lines = [np.concatenate(list(images[labels == label][:8]), axis=1) for label in np.unique(labels)[:8]]
        axis.imshow(np.concatenate(lines), cmap="gray", interpolation="nearest")
        axis.set(xticks=[], yticks=[], title=row.split(",")[0])
        axis.spines[:].set_visible(False)
    columns = {"sw_held_in": "held in", "sw_held_out": "held out", "sw_unseen": "unseen"}
    bars(chart, table, rows, list(columns.items()))
    chart.set(ylabel="SW ratio (real = 1)")
    chart.set_xticks(range(len(rows)), [row.split(",")[0] for row in rows])
    logarithmic(chart)
    chart.legend(frameon=False, fontsize=8)
    return fig


def claims(table: Table) -> list[Claim]:
    """The preset's network leads."""
    ours, *others = best(table)
    rival = min(others, key=lambda row: table[row]["sw_held_out"].mean)
    here = f"{table[ours]['sw_held_out']}; {rival}: {table[rival]['sw_held_out']}"
    text = "The preset's convolutions come closest to real, to encoders held out, at equal seconds"
    return [Claim(text, "not reported", here, table[ours]["sw_held_out"].mean < table[rival]["sw_held_out"].mean)]


STUDY = Study(
    name="generators",
    title="three networks under the recipe of Fashion-MNIST, the same seconds each",
    question="Which network draws small pictures best?",
    columns=SCORE_COLUMNS | {"size": "million numbers", "ms_per_image": "ms / image", "steps": "steps"},
    cells=cells,
    figure=figure,
    claims=claims,
    notes=f"{FASHION.seconds(SECONDS):.0f} core-seconds of training a run. The perceptron is that of the studies "
    "of digits; the transformer, of patches of 4 x 4, is the pixel MeanFlow network. These two have three learning "
    "rates each, of which the best by the held-out ratio stands for them.",
)
