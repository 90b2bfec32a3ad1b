"""A trained klein for other programs: weights in their formats, and a card that says what they are."""

from irdm.export.files import FORMATS, export_run

__all__ = ["FORMATS", "export_run"]
