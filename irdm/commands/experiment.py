"""`irdm experiment`: list the studies, run one, record it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from pydantic import Field

from irdm.commands import Command, Count, Out, Seed
from irdm.config import Config
from irdm.fields import UsageError, nearest
from irdm.overrides import word


class Experiment(Config):
    """Runs a study of the paper at small scale, on this machine: every cell is an ordinary training run. Writes
    OUT/result.json, OUT/figure.png and OUT/results.md; the same command again resumes.
    """

    name: str | None = word(None)
    """The study; --list names them."""
    list: bool = False
    """List the studies."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Each cell is run once for each."""
    out: Out | None = None
    """Where to write; unset, runs/experiments/NAME."""
    scale: float = Field(default=1.0, gt=0, le=1)
    """Share of the full iterations or seconds."""
    workers: Count | None = None
    """Runs at a time, one core each; unset, as many as there are cores."""
    record: Out | None = None
    """Also put the result into DIR/results/ and rewrite DIR/results.md."""


def run(given: Experiment, command: str) -> int:
    """Run the study, then print what it claims and what was found."""
    from irdm.experiments import EXPERIMENTS, record, run_study
    from irdm.experiments.draw import require_matplotlib

    if given.list or given.name is None:
        print("\n".join(f"  {name:11} {study.title}" for name, study in EXPERIMENTS.items()))
        return 0
    if given.name not in EXPERIMENTS:
        raise UsageError(f"there is no study '{given.name}'{nearest(given.name, EXPERIMENTS)}")
    if len({*given.seeds}) < len(given.seeds):
        raise UsageError(f"--seeds is {' '.join(map(str, given.seeds))}: give each seed once")
    require_matplotlib()  # before hours of work, not after them
    study = EXPERIMENTS[given.name]
    out = given.out or Path("runs") / "experiments" / given.name
    result = run_study(
        study,
        out,
        seeds=given.seeds,
        scale=given.scale,
        workers=given.workers,
        command=shlex.join(["irdm", "experiment", given.name]),
        progress=lambda text: print(text, flush=True),
    )
    print()
    for claim in result["claims"]:
        print(f"{'holds' if claim['holds'] else 'DOES NOT HOLD':14}{claim['text']}\n{'':14}paper: {claim['paper']}")
        print(f"{'':14}here:  {claim['ours']}")
    print(f"\nwrote {out / 'result.json'}, {out / 'figure.png'} and {out / 'results.md'}")
    if given.record:
        print(f"wrote {record(study, out, given.record, EXPERIMENTS)}")
    return 0


COMMAND = Command(Experiment, run)
