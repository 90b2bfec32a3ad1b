"""`irdm experiment`: list the studies, run one, record it."""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path

from irdm.experiments import EXPERIMENTS, record, run_study
from irdm.experiments.draw import require_matplotlib


def main(argv: Sequence[str]) -> int:
    """Run `irdm experiment`; returns 0. Raises ValueError for an unknown study and whatever the study raises."""
    parser = argparse.ArgumentParser(
        prog="irdm experiment",
        description="Run a study of the paper at small scale, on this machine: every cell is an ordinary training run. "
        "Writes OUT/result.json, OUT/figure.png and OUT/results.md; the same command again resumes.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the study; --list names them")
    parser.add_argument("--list", action="store_true", help="list the studies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="default: 0 1 2")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/experiments/NAME")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="share of the full iterations or seconds (default: 1)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="runs at a time, one core each (default: the cores)")
    parser.add_argument(
        "--record", type=Path, metavar="DOCS", help="also put the result into DOCS/results/ and rewrite DOCS/results.md"
    )
    given = parser.parse_args(argv)
    if given.list or given.name is None:
        print("\n".join(f"  {name:11} {study.title}" for name, study in EXPERIMENTS.items()))
        return 0
    if given.name not in EXPERIMENTS:
        near = difflib.get_close_matches(given.name, EXPERIMENTS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"There is no study '{given.name}'{hint} `irdm experiment --list` names them.")
    require_matplotlib()  # before hours of work, not after them
    study = EXPERIMENTS[given.name]
    out = given.out or Path("runs") / "experiments" / given.name
    command = shlex.join(["irdm", "experiment", given.name])
    result = run_study(
        study, out, seeds=given.seeds, scale=given.scale, workers=given.workers, command=command, progress=_say
    )
    print()
    for claim in result["claims"]:
        print(f"{'holds' if claim['holds'] else 'DOES NOT HOLD':14}{claim['text']}\n{'':14}paper: {claim['paper']}")
        print(f"{'':14}here:  {claim['ours']}")
    print(f"\nwrote {out / 'result.json'}, {out / 'figure.png'} and {out / 'results.md'}")
    if given.record:
        print(f"wrote {record(study, out, given.record, EXPERIMENTS)}")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)
