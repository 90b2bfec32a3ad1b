"""Metrics: one file each, one table. They share no loss with training.

To add one, write `metric(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]` and give it a
line in METRICS: results, tables, reports and comparisons show whatever scores there are.
"""

from __future__ import annotations

from irdm.metrics.accuracy import label_accuracy
from irdm.metrics.base import EvaluationConfig, Metric
from irdm.metrics.bins import bins
from irdm.metrics.classes import class_shares
from irdm.metrics.diversity import duplicates, vendi
from irdm.metrics.frechet_distance import frechet_distances
from irdm.metrics.frechet_infinity import frechet_infinity
from irdm.metrics.inception_score import inception_score
from irdm.metrics.joint import joint_ratio
from irdm.metrics.kernel_distance import cmmd, kernel_distances
from irdm.metrics.manifold import precision_recall_density_coverage
from irdm.metrics.memorisation import memorisation
from irdm.metrics.mmd import mmd_ratio
from irdm.metrics.score import Estimate, Score
from irdm.metrics.sliced_wasserstein import SlicedWassersteinRatio, sw_ratio, sw_ratio_unseen, whitened_ratio
from irdm.metrics.tables import Real, Table
from irdm.metrics.world import world

METRICS: dict[str, Metric] = {
    "sw_ratio": sw_ratio,
    "sw_ratio_unseen": sw_ratio_unseen,
    "whitened_ratio": whitened_ratio,
    "mmd_ratio": mmd_ratio,
    "frechet": frechet_distances,
    "frechet_infinity": frechet_infinity,
    "kernel_distance": kernel_distances,
    "cmmd": cmmd,
    "inception_score": inception_score,
    "manifold": precision_recall_density_coverage,
    "bins": bins,
    "class_shares": class_shares,
    "memorisation": memorisation,
    "duplicates": duplicates,
    "vendi": vendi,
    "label_accuracy": label_accuracy,
    "joint_ratio": joint_ratio,
    "world": world,
}

__all__ = [
    "METRICS",
    "Estimate",
    "EvaluationConfig",
    "Metric",
    "Real",
    "Score",
    "SlicedWassersteinRatio",
    "Table",
]
