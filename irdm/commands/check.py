"""`irdm check`: what a run needs, and whether it is there."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from irdm.commands import Command, Out
from irdm.commands.train import configured
from irdm.config import Config
from irdm.overrides import Options, others, word


class Check(Config):
    """Lists what a run needs (packages, device, data, weights, reference, a place to write, disk, memory, time) and
    whether it is there. Takes the fields of `irdm train`. Exits with 1 when anything is missing.
    """

    preset: str | None = word(None)
    """What to start from; `irdm --help` lists the presets."""
    config: Path | None = None
    """A JSON configuration in place of a preset."""
    out: Out | None = None
    """The run directory; unset, runs/PRESET."""
    cards: str | None = Field(default=None, alias="for")
    """GPUs that the run is meant for, such as 8xH200: memory, hours and files there, full, divided and with LoRA."""
    limit: int | None = None
    """As `irdm train --limit`."""
    fields: Options = others()
    """Any field of the run."""


def run(given: Check, command: str) -> int:
    """Print a line for each need; 1 when any is missing."""
    config = configured(given.preset, given.config, given.fields, given.limit)
    from irdm.cards import cards_of
    from irdm.check import check

    cards = cards_of(given.cards) if given.cards else None

    missing = []
    for name, there, text in check(config, given.out or Path("runs") / config.preset, cards):
        print(f"{'ok' if there else 'MISSING':8} {name:9} {text}", flush=True)
        missing += [] if there else [name]
    if missing:
        raise ValueError(f"missing for {config.preset}: {', '.join(missing)}")
    return 0


COMMAND = Command(Check, run)
