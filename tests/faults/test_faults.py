"""Whatever goes wrong, nothing is lost and the message is clear: each kind of fault, injected by `inject.py`.

An everyday run tries some of the writes of a training; `pytest -m slow tests/faults` is for every night and before a
release. docs/reliability.md has the counts of the last full run.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STRIDE = os.environ.get("IRDM_CRASH_STRIDE", "23")  # 1 tries every write: half an hour
HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.timeout(7200),
]


def injected(kind, folder, count):
    """The lines of `inject.py`, after it found nothing wrong."""
    command = [sys.executable, str(HERE / "inject.py"), kind, str(folder), "--count", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=7000)
    assert done.returncode == 0 and done.stdout.endswith(f" {kind}, 0 failed\n"), done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_kill_at_some_writes_of_a_training_loses_nothing(tmp_path):
    assert len(injected("writes", tmp_path, STRIDE)) > 5


@pytest.mark.slow
def test_a_hundred_kills_over_every_phase(tmp_path):
    lines = injected("kills", tmp_path, 100)
    assert sum(line.startswith("ok ") for line in lines) == 100
    for phase in ("fit of encoders", "reference", "training and checkpoints", "judging", "embedding"):
        assert any(line.startswith("ok ") and phase in line for line in lines), phase


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "least"), [("full", 8, 20), ("flips", 2, 40), ("writers", 3, 9), ("nan", 4, 6)]
)
def test_other_faults(tmp_path, kind, count, least):
    assert sum(line.startswith("ok ") for line in injected(kind, tmp_path, count)) >= least


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["plan.json", "train/shard-00000"])
def test_a_dead_rank_of_a_reference_stops_the_other_and_the_command_goes_on(tmp_path, moment):
    from scene import COMMANDS, Scene

    scene = Scene(tmp_path)
    whole, place = scene.whole("build"), scene.place("build")
    assert whole.is_dir()
    irdm = [str(Path(sys.executable).with_name("irdm")), *COMMANDS["build"].split()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "IRDM_CACHE": "cache"}
    options = {"cwd": place, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*launcher, *irdm], **options)
    while not (place / "reference" / moment).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0 and "Signal 9 (SIGKILL)" in said and "irdm/" not in said, said
    done = subprocess.run(irdm, **options, timeout=600)
    assert done.returncode == 0 and not scene.wrong("build", place), done.stderr
