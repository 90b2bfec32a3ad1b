"""What a perceptron draws of 32 x 32 colour crops after a few steps is static, and its run says so first."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
from evaluation.test_defects_seen import photographs
from PIL import Image

from irdm.cli import main
from irdm.evaluation import read_result


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_static_is_called_what_it_is_in_the_first_line(tmp_path, capsys):
    images, labels = photographs(32, True)(np.random.default_rng(0), 1000)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "crops" / ("flower" if label // 5 else "china") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0).round().astype(np.uint8)).save(path)
    places = ["--data.path", str(tmp_path / "crops"), "--out", str(tmp_path / "run")]
    words = "--generator.kind mlp --steps 15 --rollout 128 --battery.steps 40"
    judging = "--evaluation.ladder 150 --evaluation.directions 128 --evaluation.resamples 16 --evaluation.draws 1"
    assert main(["train", "folder", *places, *words.split(), *judging.split()]) == 0
    result = read_result(tmp_path / "run")
    said = result.verdict.sentence
    assert re.match("Not real: (further from|as far from) real (as|than) (static|noise) of", said), said
    assert "visible defects" in said
    assert f"\n\n{said}\n" in capsys.readouterr().out
    page = html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert said in page[: page.index("chance of that in real images")]
    distance, fidelity = result.verdict.witnesses[:2]
    assert distance.objects and fidelity.objects
    assert distance.evidence[0].encoder in result.protocol["real"]["held_out"]
    assert distance.evidence[0].value > 3 and result.scores["precision"].held_out.value < 0.9
