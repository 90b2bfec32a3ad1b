"""The paper's studies on distances, batches and balance: each is a table of ordinary training runs."""

from __future__ import annotations

from irdm.experiments import batch, controller, distance, estimator, gaming, joint, peers, spiral
from irdm.experiments.base import Study
from irdm.experiments.page import record
from irdm.experiments.runner import run_study

EXPERIMENTS: dict[str, Study] = {
    module.STUDY.name: module.STUDY for module in (spiral, batch, distance, gaming, controller, estimator, joint, peers)
}

__all__ = ["EXPERIMENTS", "Study", "record", "run_study"]
