"""Where a set of images lies on the ladder of defects: which defect at which level is as far from real.

Letters: e encoders, l levels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from irdm.config import Config
from irdm.evaluation.defects import DEFECTS
from irdm.evaluation.sensitivity import Sensitivity, sees

FINE = 16  # places between two levels
LIKE = 0.55  # share of a profile over encoders that a defect must explain before the images are said to look like it
TINY = 1e-4  # in ratios


class Place(Config):
    """Where a set of images lies on the ladder."""

    says: str
    """In words: "noise of 6 grey levels"."""
    defect: str
    level: float
    encoder: str | None = None
    """None where the defect is as far from real to all encoders alike; else the one to which it is."""
    beyond: bool = False
    """Whether the images are further from real than the last level."""


def place(
    ladder: Sensitivity, judged: Mapping[str, float], worst: str | None, *, visible: bool = False
) -> Place | None:
    """The rung that a set of images is as far from real as.

    The defect and the level, between two levels too, whose ratios over encoders come nearest to those of the images:
    their logarithms in units of how far real draws move, by the sum of absolute differences, so that an odd encoder
    does not decide. Where none explains 55% of that, the first defect that the encoder `worst` sees, at the level that
    is as far to that one. None where neither is there.

    Args:
        ladder: of the real side that the images were judged against.
        judged: `excess` of the images.
        worst: the encoder that objects most.
        visible: whether single images are seen to be defective. Then only changes of pixels, which have several levels,
            are compared with, and not a choice of real images, such as a class dropped.
    """
    names = [name for name in ladder.real if name in judged]
    target = _logs(ladder, judged, names)
    if not target.any():
        return None
    curves = {name: _curve(ladder, name, names) for name in dict.fromkeys(rung.defect for rung in ladder.rungs)}
    if visible:
        curves = {name: curve for name, curve in curves.items() if len(curve[0]) > 1}
    losses = {name: np.abs(logs - target).sum(1) for name, (_, logs) in curves.items()}
    name = min(losses, key=lambda name: losses[name].min())
    if losses[name].min() <= (1 - LIKE) * target.sum():
        levels, logs = curves[name]
        at = int(losses[name].argmin())
        beyond = len(levels) > 1 and at == len(levels) - 1 and target.sum() > logs[at].sum() * (1 + 1 / FINE)
        return _place(name, float(levels[at]), None, bool(beyond))
    if worst not in names:
        return None
    column = names.index(worst)
    for name, (levels, logs) in curves.items():
        last = [rung for rung in ladder.rungs if rung.defect == name][-1]
        if len(levels) > 1 and sees(last, worst):
            reached = np.flatnonzero(logs[:, column] >= target[column])
            return _place(name, float(levels[reached[0] if len(reached) else -1]), worst, not len(reached))
    return None


def _place(defect: str, level: float, encoder: str | None, beyond: bool) -> Place:
    level = float(f"{level:.2g}")
    return Place(says=DEFECTS[defect].at(level), defect=defect, level=level, encoder=encoder, beyond=beyond)


def _logs(ladder: Sensitivity, found: Mapping[str, float], names: list[str]) -> np.ndarray:
    """Logarithms [e] of the ratios of a ladder, in units of their spread."""
    ratios = ladder.ratios(found)
    return np.log([ratios[name] for name in names]) / _spread(ladder, names)


def _spread(ladder: Sensitivity, names: list[str]) -> np.ndarray:
    return np.array([max(ladder.spread[name], TINY) for name in names])


def _curve(ladder: Sensitivity, defect: str, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Levels [l], between those measured and below the first, and `_logs` [l, e] of what is there.

    Between two levels D^2 is a power of the level; below the first it is the square, where a level starts from 0.
    """
    rungs = [rung for rung in ladder.rungs if rung.defect == defect]
    levels = np.array([rung.level for rung in rungs])
    floor = np.array([TINY * ladder.real[name] ** 2 for name in names])
    squares = np.maximum([[rung.excess[name] for name in names] for rung in rungs], floor)
    if len(rungs) == 1:
        fine, between = levels, squares
    else:
        if levels[0] < levels[-1]:
            levels, squares = np.insert(levels, 0, levels[0] / 4), np.insert(squares, 0, squares[0] / 16, axis=0)
        steps = np.arange(FINE * (len(levels) - 1) + 1) / FINE
        known = np.arange(len(levels))
        fine = np.exp(np.interp(steps, known, np.log(levels)))
        between = np.exp(np.stack([np.interp(steps, known, np.log(column)) for column in squares.T], axis=1))
    real = np.array([ladder.real[name] for name in names])
    return fine, np.log(np.sqrt(1 + between / real**2)) / _spread(ladder, names)
