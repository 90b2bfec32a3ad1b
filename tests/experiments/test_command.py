"""`irdm experiment` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from irdm.experiments import EXPERIMENTS


def irdm(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "irdm.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, **options)


def test_the_list_names_every_study():
    done = irdm("experiment", "--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(EXPERIMENTS)


def test_an_unknown_study_is_answered_with_the_nearest(tmp_path):
    done = irdm("experiment", "spirale", cwd=tmp_path)
    assert done.returncode == 2 and "did you mean 'spiral'?" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_asked_for_before_the_work(tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None; from irdm.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "experiment", "spiral"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 1 and "pip install -c constraints.txt '.[experiments]'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupted_study_goes_on(tmp_path):
    command = [sys.executable, "-u", "-m", "irdm.cli", "experiment", "spiral"]
    command += ["--scale", "0.004", "--seeds", "0", "--workers", "1", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "[4/18]" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=100)
    assert process.returncode == 130
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("seed-0.json")}
    assert 4 <= len(finished) < 18
    assert not (tmp_path / "out" / "result.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"18 runs, {len(finished)} done already" in done.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "Every cell reaches the published one" in (tmp_path / "out" / "results.md").read_text()


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """The joint study at a sixth of its seconds, one seed."""
    out = tmp_path_factory.mktemp("joint")
    workers = str(min(2, os.cpu_count() or 1))
    done = irdm("experiment", "joint", "--scale", "0.16", "--seeds", "0", "--workers", workers, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((out / "result.json").read_text())


def test_joint_matching_is_what_ties_an_image_to_its_label(joint):
    printed, result = joint
    accuracy = {row: numbers["accuracy"][0] for row, numbers in result["rows"].items()}
    assert accuracy["joint"] > 0.6 > 0.2 > accuracy["marginal"], "chance is 0.1, real digits are at 0.86"
    assert "holds" in printed and "GenEval 0.826 joint" in printed


def test_the_steps_are_those_that_fit_the_budget(joint):
    _, result = joint
    for numbers in result["rows"].values():
        assert numbers["steps"][0] > 5
        assert numbers["core_seconds"][0] == pytest.approx(0.16 * 60, rel=0.6)
