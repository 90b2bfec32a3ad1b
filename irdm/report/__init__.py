"""Self-contained HTML pages: of a run directory, and of an evaluation against a reference."""

from irdm.report.evaluation import write_evaluation_report
from irdm.report.page import write_report

__all__ = ["write_evaluation_report", "write_report"]
