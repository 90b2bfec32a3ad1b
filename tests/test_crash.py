"""A run killed at any of its writes goes on with the same command, to the same weights, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STRIDE = int(os.environ.get("IRDM_CRASH_STRIDE", "23"))  # 1 tries every point: half an hour


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_write_loses_nothing(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("crash.py")), str(tmp_path), str(STRIDE)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "IRDM_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0 and ", 0 failed" in done.stdout, done.stdout + done.stderr
