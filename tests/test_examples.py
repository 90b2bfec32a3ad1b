"""The examples do what they say."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.compare import compare
from irdm.evaluation import read_result

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name):
        sys.modules.pop(name, None)
        return __import__(name)

    return load


def test_the_custom_loop_learns_the_ring(load, monkeypatch):
    custom_loop = load("custom_loop")
    monkeypatch.setattr(custom_loop, "STEPS", 200)
    generator, real = custom_loop.train()
    with torch.no_grad():
        fake = generator(torch.randn(1000, 8))
    radius = fake.norm(dim=1)
    assert (radius - 1).abs().median() < 3 * (real.norm(dim=1) - 1).abs().median(), "points lie on the ring"
    sector = (torch.atan2(fake[:, 1], fake[:, 0]) / (2 * torch.pi) * 8).floor().long().remainder(8)
    assert sector.bincount(minlength=8).min() > 60, "all the way round: 125 in each eighth would be even"


def test_the_custom_loop_is_short():
    assert len((EXAMPLES / "custom_loop.py").read_text().splitlines()) < 60


def test_the_custom_encoder_is_scored(load, capsys):
    score = load("custom_encoder").main()["sw_ratio"]
    assert set(score.encoders) == {"content", "pca", "spectrum"}
    assert score.encoders["spectrum"].value > 2, "an untrained generator is far from real"
    assert "spectrum" in capsys.readouterr().out


def test_fresh_photographs_are_told_from_faded_ones(load, monkeypatch, tmp_path, capsys):
    photographs = load("photographs")
    monkeypatch.setattr(photographs, "STEPS", 5)
    monkeypatch.setattr(photographs, "SIDE", 20)
    photographs.main(tmp_path)
    found = {name: read_result(tmp_path / f"judged-{name}").scores for name in ("fresh", "faded")}
    low, high = found["fresh"]["sw_ratio"].mean.ci95
    assert low < 1 < high, "few images, wide intervals"
    for name in ("coverage", "recall"):
        fresh, faded = (found[side][name].mean for side in ("fresh", "faded"))
        assert fresh.value == pytest.approx(fresh.control, abs=0.05)
        assert faded.value < fresh.value and faded.p_real < 1e-4 < 0.1 < fresh.p_real
    results = [read_result(tmp_path / f"judged-{name}") for name in ("fresh", "faded")]
    assert [result.verdict.real for result in results] == [True, False]
    compared = compare(*results)
    assert compared["verdict"]["better"] == "a" and compared["verdict"]["group"] == "mean"
    assert all(compared["metrics"][name]["mean"]["better"] == "a" for name in ("whitened_ratio", "mmd_ratio", "recall"))
    assert "A is better" in capsys.readouterr().out
    assert len((EXAMPLES / "photographs.py").read_text().splitlines()) < 80


def cells():
    """The code of the notebook."""
    notebook = json.loads((EXAMPLES / "your_pictures.ipynb").read_text())
    assert notebook["nbformat"] == 4 and all(not cell.get("outputs") for cell in notebook["cells"])
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_notebook_draws_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRDM_CACHE", str(tmp_path / "cache"))
    names: dict = {}
    for code in cells():
        exec(compile(code, "your_pictures.ipynb", "exec"), names)
    assert np.asarray(Image.open(tmp_path / "drawn.png")).std() > 0
    assert names["result"].scores["sw_ratio"].held_out.value < 3
