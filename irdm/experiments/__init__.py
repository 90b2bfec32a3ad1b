"""The paper's studies on distances, batches and balance: each is a table of ordinary training runs."""

from __future__ import annotations

from irdm.experiments import (
    batch,
    battery,
    controller,
    distance,
    estimator,
    gaming,
    generators,
    joint,
    peers,
    pretrained,
    spiral,
    world,
)
from irdm.experiments.base import Study
from irdm.experiments.page import record
from irdm.experiments.runner import run_study

BOTH = (batch, battery, pretrained, distance, gaming, controller, peers)  # on digits and on clothes
EXPERIMENTS: dict[str, Study] = {
    study.name: study
    for study in (
        spiral.STUDY,
        *(module.STUDY for module in BOTH),
        estimator.STUDY,
        joint.STUDY,
        world.STUDY,
        world.CHANGES,
        generators.STUDY,
        *(module.ON_FASHION for module in BOTH),
    )
}

__all__ = ["EXPERIMENTS", "Study", "record", "run_study"]
