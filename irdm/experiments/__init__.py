"""The paper's studies on distances, batches and balance: each is a table of ordinary training runs."""

from __future__ import annotations

from irdm.experiments import (
    batch,
    battery,
    controller,
    distance,
    estimator,
    gaming,
    joint,
    peers,
    pretrained,
    spiral,
    world,
)
from irdm.experiments.base import Study
from irdm.experiments.page import record
from irdm.experiments.runner import run_study

EXPERIMENTS: dict[str, Study] = {
    study.name: study
    for study in (
        *(
            module.STUDY
            for module in (
                spiral,
                batch,
                battery,
                pretrained,
                distance,
                gaming,
                controller,
                estimator,
                joint,
                peers,
                world,
            )
        ),
        world.CHANGES,
        *(module.ON_FASHION for module in (batch, battery, pretrained, distance, gaming, controller, peers)),
    )
}

__all__ = ["EXPERIMENTS", "Study", "record", "run_study"]
