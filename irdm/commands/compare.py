"""`irdm compare`: two evaluations of one protocol, or two scored folders of GenEval, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from irdm.commands import Command, Out
from irdm.config import Config
from irdm.overrides import word


class Compare(Config):
    """Which of two evaluations is better, in a sentence, and their paired differences with 95% intervals and p-values
    corrected for their number. Refuses results of unlike protocols: another reference, other encoders, another number
    of images, seed or setting. Of two folders that `irdm geneval score` wrote: the differences of the rates, and how
    often PickScore prefers B for one prompt and noise.
    """

    a: Path = word()
    """A result.json or geneval.json, or the directory it lies in."""
    b: Path = word()
    """The other one."""
    out: Out | None = None
    """Also write the comparison to this file, as JSON."""


def run(given: Compare, command: str) -> int:
    """Print the verdict, and a line for each score, by group or, where there is no common scale, by encoder."""
    from irdm.geneval.summary import is_scored

    if is_scored(given.a) or is_scored(given.b):
        return _geneval(given)
    from irdm.commands.scores import comparison_table
    from irdm.compare import compare
    from irdm.evaluation import read_result
    from irdm.files import write_atomic

    found: dict[str, Any] = compare(read_result(given.a), read_result(given.b))
    if given.out:
        write_atomic(given.out, json.dumps(found, indent=1))
    print(f"A  {given.a}\nB  {given.b}\n\n{found['verdict']['says']}\n\n{comparison_table(found)}")
    return 0


def _geneval(given: Compare) -> int:
    from irdm.files import write_atomic
    from irdm.geneval.comparing import compare_scored, comparison_lines
    from irdm.geneval.summary import read_scored

    found = compare_scored(read_scored(given.a), read_scored(given.b))
    if given.out:
        write_atomic(given.out, json.dumps(found, indent=1))
    print("\n".join([f"A  {given.a}", f"B  {given.b}", "", *comparison_lines(found)]))
    return 0


COMMAND = Command(Compare, run)
