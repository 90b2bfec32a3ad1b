"""`irdm report`: the page of a run or of an evaluation."""

from __future__ import annotations

from pathlib import Path

from irdm.commands import Command
from irdm.config import Config
from irdm.overrides import word


class Report(Config):
    """Writes report.html, one self-contained page, from what the directory of a run or of an evaluation holds. Works
    during training too, with what is known by then.
    """

    folder: Path = word()
    """A run directory, such as runs/digits, or the directory of an evaluation."""


def run(given: Report, command: str) -> int:
    """Write the page, say where."""
    from irdm.report import write_report

    print(f"wrote {write_report(given.folder)}")
    return 0


COMMAND = Command(Report, run)
