"""One self-contained HTML page from a run directory."""

from irdm.report.page import write_report

__all__ = ["write_report"]
