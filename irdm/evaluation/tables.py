"""Moved to irdm.metrics.tables, so that metrics can import it; this file goes when nobody imports it any more."""

from irdm.metrics.tables import Real, Table

__all__ = ["Real", "Table"]
