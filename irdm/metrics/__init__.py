"""Metrics: one file each, one table. They judge what training never sees them judge, and share only `irdm.ops` with it.

Every metric is `metric(generated: Sample, real: Real, config: EvaluationConfig) -> dict` of JSON values.
"""

from __future__ import annotations

from collections.abc import Callable

from irdm.metrics.accuracy import label_accuracy
from irdm.metrics.base import Direction, EvaluationConfig, Real, Sample
from irdm.metrics.mmd import mmd_ratio
from irdm.metrics.neighbours import nearest_neighbour_ratio
from irdm.metrics.sliced_wasserstein import sw_ratio, sw_ratio_unseen

METRICS: dict[str, Callable[[Sample, Real, EvaluationConfig], dict]] = {
    "sw_ratio": sw_ratio,  # 1 is a fresh real draw, lower is better
    "sw_ratio_unseen": sw_ratio_unseen,  # the same against rows nobody trained on
    "mmd_ratio": mmd_ratio,  # 1 is a fresh real draw, lower is better
    "nearest_neighbour_ratio": nearest_neighbour_ratio,  # far below 1: copies of the training images
    "label_accuracy": label_accuracy,  # higher is better, up to the classifier's own on real images
}

DIRECTIONS: dict[str, Direction] = {
    "sw_ratio": "lower",
    "sw_ratio_unseen": "lower",
    "mmd_ratio": "lower",
    "nearest_neighbour_ratio": "real",
    "label_accuracy": "higher",
}

__all__ = ["DIRECTIONS", "METRICS", "EvaluationConfig", "Real", "Sample"]
