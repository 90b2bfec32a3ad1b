"""The paper's studies on distances, batches and balance: each is a table of ordinary training runs."""

from __future__ import annotations

from irdm.experiments.base import Study
from irdm.experiments.runner import run_study
from irdm.experiments.spiral import STUDY as SPIRAL

EXPERIMENTS: dict[str, Study] = {study.name: study for study in (SPIRAL,)}

__all__ = ["EXPERIMENTS", "Study", "run_study"]
