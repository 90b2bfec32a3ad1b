"""Runs saved on 4 ranks go on with 1, 2 or 3; a rank that is killed, hangs or fails stops the others, and is named."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from irdm.checkpoint import load_checkpoint
from irdm.log import read_log

SAVED, STEPS = 3, 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of all runs, and what was seen of them."""
    out = tmp_path_factory.mktemp("elastic")
    command = [sys.executable, Path(__file__).with_name("elastic.py"), out]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return out, json.loads((out / "found.json").read_text())


def tensors(run, step=STEPS):
    found = load_checkpoint(run / "checkpoints" / f"step-{step:08d}").tensors
    return {f"{group}.{name}": tensor for group, some in found.items() for name, tensor in some.items()}


@pytest.mark.parametrize("run", ["resumed-1", "resumed-2", "resumed-3", "killed/run"])
def test_the_trajectory_is_that_of_one_process_that_never_stopped(made, run):
    """37 rows on 4 ranks, then on another number: weights, average and moments, to 2e-6 of the largest of each."""
    out, found = made
    assert not any(found["codes"])
    expected, other = tensors(out / "straight"), tensors(out / run)
    assert expected.keys() == other.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-6 * tensor.abs().max().item())
    moved = tensors(out / "straight", SAVED)["generator.to_pixels.bias"] - expected["generator.to_pixels.bias"]
    assert moved.abs().max() > 1e-5, "it did train meanwhile"
    lines = [read_log(out / where / "metrics.jsonl")[0] for where in ("straight", run)]
    assert [line["step"] for line in lines[1]] == [line["step"] for line in lines[0]]
    for one, two in zip(*lines, strict=True):
        assert two["scores"] == pytest.approx(one["scores"], rel=1e-5)


@pytest.mark.parametrize(
    "trouble, most, words",
    [
        ("killed", 10, "killed or cut off"),
        ("hangs", 20, "gave no sign for 5 s: killed, hanging or cut off"),
        ("fails", 10, "failed; its own message says why"),
    ],
)
def test_a_lost_rank_stops_the_others_in_time_and_is_named(made, trouble, most, words):
    """With a limit of 5 s instead of a minute. What was saved before stays."""
    out, found = made
    assert found[trouble]["codes"] == [1, 1 if trouble == "fails" else -9, 1]
    assert found[trouble]["seconds"] < most
    told = "".join(found[trouble]["words"][str(rank)] for rank in (0, 2))
    assert re.search(rf"rank 1 \(process \d+ on .+\) {words}", told) and "Traceback" not in told, told
    assert "rank 0 (" not in told and "rank 2 (" not in told
    assert tensors(out / trouble / "run", SAVED)


@pytest.mark.slow  # four processes import diffusers
def test_divided_weights_and_adapters_go_on_with_another_number_of_ranks(tmp_path):
    """FSDP2 and LoRA of tiny klein, saved on 4 ranks: to a share of the largest number of each tensor.

    Adapters begin at 0, where AdamW makes whole steps of gradients that are little more than rounding.
    """
    command = [sys.executable, Path(__file__).with_name("elastic_klein.py"), tmp_path]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, sizes, share in (("divided", (1, 2, 3), 5e-5), ("adapters", (1, 3), 3e-3)):
        expected = tensors(tmp_path / kind / "straight", 4)
        for size in sizes:
            found = tensors(tmp_path / kind / f"resumed-{size}", 4)
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                torch.testing.assert_close(found[name], tensor, rtol=0, atol=share * tensor.abs().max().item())
