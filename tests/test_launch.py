"""The Slurm script, with Slurm's commands played: what each rank is told, and when the job is put back."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch" / "slurm.sbatch"
PLAYED = {
    "srun": "shift 2\n"
    'for i in 0 1 2 3; do SLURM_PROCID=$i SLURM_LOCALID=$((i % 2)) "$@" || code=$?; done\nexit ${code:-0}',
    "scontrol": 'if [ "$1" = show ]; then printf "first\\nsecond\\n"; else echo "$@" >> "$SEEN/requeued"; fi',
    "irdm": 'told="$MASTER_ADDR $MASTER_PORT $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $*"\n'
    'echo "$told" >> "$SEEN/ranks"\nexit $ENDS',
}


@pytest.mark.parametrize("ends", [0, 1, 143])
def test_each_rank_is_told_its_place_and_a_saved_run_is_put_back(tmp_path, ends):
    for name, body in PLAYED.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    told = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}
    told |= {"SEEN": str(tmp_path), "ENDS": str(ends), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", SCRIPT, "digits", "--out", "a place"], env={**os.environ, **told})
    assert done.returncode == ends
    lines = (tmp_path / "ranks").read_text().splitlines()
    assert lines == [f"first 21234 {rank} 4 {rank % 2} 2 train digits --out a place" for rank in range(4)]
    assert (tmp_path / "requeued").exists() == (ends == 143)
    if ends == 143:
        assert (tmp_path / "requeued").read_text() == "requeue 41234\n"
