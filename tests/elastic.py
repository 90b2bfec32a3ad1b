"""Runs that change their number of ranks, and runs that lose one; tests/test_elastic.py starts this.

python elastic.py OUT: writes OUT/found.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import sklearn.datasets  # noqa: F401 (once, before there are many)
import torch
import torch._dynamo  # noqa: F401 (an optimizer imports it)
from forked import forked

import irdm.train
from irdm.encoders import LocalBatteryConfig
from irdm.ops import heartbeat
from irdm.presets import PRESETS

SAVED, STEPS = 3, 6
CONFIG = PRESETS["digits-smoke"]().model_copy(
    update={"battery": LocalBatteryConfig(held_in=("pixels", "pca"), held_out=(), steps=2), "evaluation": None}
    | {"rollout": 37, "micro_batch": 5, "log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 99, "device": "cpu"}
)


def train(out: Path, steps: int) -> None:
    irdm.train.train(CONFIG.model_copy(update={"steps": steps}), out)


def disturbed(out: Path, trouble: str) -> None:
    """Rank 1 of a run of many steps gets into trouble after some; each rank leaves its last words and their time."""
    rank, step = int(os.environ["RANK"]), irdm.train.Rollouts.__call__

    def stepping(rollouts, number):
        if number == SAVED:
            (out / f"began-{rank}").write_text(str(time.time()))
        if number == SAVED + 1 and rank == 1:
            if trouble == "fails":
                raise MemoryError("no more memory")
            os.kill(os.getpid(), {"killed": signal.SIGKILL, "hangs": signal.SIGSTOP}[trouble])
        return step(rollouts, number)

    irdm.train.Rollouts.__call__ = stepping
    out.mkdir(exist_ok=True)
    words = open(out / f"words-{rank}", "w", buffering=1)  # noqa: SIM115 (of the process, to its end)
    os.dup2(words.fileno(), 2)
    try:
        train(out / "run", STEPS)
    except (OSError, MemoryError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


def lose(out: Path, trouble: str) -> dict:
    """Seconds until all other ranks have left, their exit codes and words."""
    watch = os.fork()
    if not watch:  # what a scheduler would do at last: a process that hangs is killed
        with contextlib.suppress(OSError):
            pids = [_pid(out / f"pid-{rank}") for rank in range(3)]
            while any(map(_runs, (pids[0], pids[2]))):
                time.sleep(0.1)
            (out / "left").write_text(str(time.time()))
            os.kill(pids[1], signal.SIGKILL)
        os._exit(0)
    codes = forked(3, told, out, trouble)
    os.waitpid(watch, 0)
    began = max(float((out / f"began-{rank}").read_text()) for rank in range(3))
    words = {rank: (out / f"words-{rank}").read_text() for rank in range(3)}
    return {"codes": codes, "seconds": float((out / "left").read_text()) - began, "words": words}


def told(out: Path, trouble: str) -> None:
    out.mkdir(exist_ok=True)
    (out / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    disturbed(out, trouble)


def _pid(path: Path) -> int:
    while not path.exists() or not path.read_text():
        time.sleep(0.1)
    return int(path.read_text())


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main(out: Path) -> None:
    torch.set_num_threads(1)
    found: dict = {"codes": [*forked(1, train, out / "straight", STEPS), *forked(4, train, out / "four", SAVED)]}
    for size in (1, 2, 3):
        shutil.copytree(out / "four", out / f"resumed-{size}")
        found["codes"] += forked(size, train, out / f"resumed-{size}", STEPS)
    heartbeat.BEAT, heartbeat.LOST, heartbeat.GRACE = 0.2, 5.0, 2.0
    for trouble in ("killed", "hangs", "fails"):
        found[trouble] = lose(out / trouble, trouble)
    found["codes"] += forked(2, train, out / "killed" / "run", STEPS)
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
