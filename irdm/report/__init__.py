"""One self-contained HTML page of a run directory or of an evaluation."""

from irdm.report.page import write_report

__all__ = ["write_report"]
