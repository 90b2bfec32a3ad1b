"""The only judge: images to tables of features, tables to scores, scores to a result.

It shares no loss with training and imports nothing of it (docs/design.md).
"""

from irdm.evaluation.embedding import embed, real_of
from irdm.evaluation.gaming import check_held_out
from irdm.evaluation.judging import QuickCheck, evaluate, judge
from irdm.evaluation.pictures import closest_pairs, gallery, write_samples
from irdm.evaluation.result import Result, evaluate_tables, read_result, write_result
from irdm.evaluation.sensitivity import Sensitivity
from irdm.evaluation.source import evaluate_source
from irdm.evaluation.verdict import Verdict, verdict_of
from irdm.metrics.base import EvaluationConfig
from irdm.metrics.tables import Real, Table

__all__ = [
    "EvaluationConfig",
    "QuickCheck",
    "Real",
    "Result",
    "Sensitivity",
    "Table",
    "Verdict",
    "check_held_out",
    "closest_pairs",
    "embed",
    "evaluate",
    "evaluate_source",
    "evaluate_tables",
    "gallery",
    "judge",
    "read_result",
    "real_of",
    "verdict_of",
    "write_result",
    "write_samples",
]
