"""A tiny klein of random weights comes closer to the captioned world: pictures, and pictures with their texts."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from irdm.cli import main  # noqa: E402
from irdm.evaluation import read_result  # noqa: E402

FEW = ["--data.kind", "world", "--data.rows", "1200", "--generator.length", "112", "--rollout", "256"]
FEW += ["--micro-batch", "128", "--evaluation.rows", "300", "--evaluation.ladder", "0"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_training_improves_the_joint_score_and_what_no_encoder_trained(seed, tmp_path):
    found = {}
    for steps in (1, 60):
        out = tmp_path / f"{steps}"
        words = ["train", "klein-tiny", *FEW, "--seed", str(seed), "--steps", str(steps), "--out", str(out)]
        assert main(words) == 0
        scores = read_result(out).scores
        found[steps] = scores["joint_ratio"].mean.value, scores["sw_ratio"].held_out.value
    print(seed, found)
    assert found[60][0] < 0.95 * found[1][0] and found[60][1] < 0.95 * found[1][1]
