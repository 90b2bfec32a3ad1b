"""Table 4 of the paper: each distance on one encoder, judged by encoders that it never saw, on digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from irdm.controller import ControllerConfig
from irdm.distances import (
    AnyDistance,
    DriftingConfig,
    ExactMMDConfig,
    FrechetConfig,
    NystromMMDConfig,
    RFFMMDConfig,
    SlicedWassersteinConfig,
)
from irdm.encoders import LocalBatteryConfig
from irdm.experiments.base import DIGITS, SCORE_COLUMNS, Claim, Setting, Study, Table, TrainCell, on_fashion
from irdm.experiments.draw import bars, grid, logarithmic
from irdm.presets import RunConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 40.0
ENCODER = "pca"
ORDER = ("Nyström", "RFF", "exact", "Fréchet", "SW", "drifting")  # of the paper's Table 4


def distances(recipe: RunConfig) -> dict[str, AnyDistance]:
    """The six of `ORDER`, with the bandwidths of the recipe's own, which is the first."""
    own = recipe.distance
    assert isinstance(own, NystromMMDConfig)
    joint = own.condition_bandwidth
    others = (
        RFFMMDConfig(bandwidths=own.bandwidths, condition_bandwidth=joint),
        ExactMMDConfig(bandwidths=own.bandwidths, condition_bandwidth=joint),
        FrechetConfig(condition_bandwidth=joint),
        SlicedWassersteinConfig(condition_bandwidth=joint),
        DriftingConfig(condition_bandwidth=joint),
    )
    return dict(zip(ORDER, (own, *others), strict=True))


def one_encoder(name: str) -> LocalBatteryConfig:
    """The local battery with one encoder that trains; every other one only judges."""
    whole = LocalBatteryConfig()
    others = tuple(other for other in whole.held_in + whole.held_out if other != name)
    return LocalBatteryConfig(held_in=(name,), held_out=others)


def cells(scale: float, setting: Setting = DIGITS) -> dict[str, TrainCell]:
    """One run a distance; drifting, whose value means nothing, is not normalised by it."""
    return {
        name: TrainCell(
            setting.run(
                battery=one_encoder(ENCODER),
                distance=distance,
                controller=ControllerConfig(kind="uniform"),
                self_normalise=name != "drifting",
            ),
            core_seconds=setting.seconds(SECONDS) * scale,
        )
        for name, distance in distances(setting.recipe()).items()
    }


def figure(table: Table, folder: Callable[[str, int], Path]) -> Figure:
    """Bars of both neutral metrics on the encoders that did not train."""
    fig, ((left, right),) = grid(1, 2, size=4.4, height=3.0)
    bars(left, table, list(ORDER), [("sw_held_out", "sliced Wasserstein")])
    bars(right, table, list(ORDER), [("mmd_held_out", "MMD")])
    left.set(title=f"SW ratio, held out ({ENCODER} trains)", ylabel="real = 1")
    right.set(title="MMD ratio, the same")
    logarithmic(right)
    return fig


def claims(table: Table) -> list[Claim]:
    """The paper's order, by each neutral metric."""
    found = []
    for column, metric in (("sw_held_out", "SW ratio"), ("mmd_held_out", "MMD ratio")):
        values = {name: table[name][column] for name in ORDER}
        order = sorted(values, key=lambda name: values[name].mean)
        ours = " > ".join(f"{name} ({values[name]})" for name in order)
        text = f"Nyström is the best distance by the {metric} on held-out encoders"
        found.append(Claim(text, " > ".join(ORDER), ours, order[0] == "Nyström"))
    return found


STUDY = Study(
    name="distance",
    title="six distances on one encoder, judged by the others, on digits (Table 4)",
    question="Which distance generalises best beyond the encoder that it sees?",
    columns=SCORE_COLUMNS | {"mmd_held_out": "MMD held out", "steps": "steps"},
    cells=cells,
    figure=figure,
    claims=claims,
    notes=f"{SECONDS:.0f} core-seconds of training a run, one encoder, joint with the label.",
)
ON_FASHION = on_fashion(STUDY, cells)
