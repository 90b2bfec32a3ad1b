"""The examples do what they say."""

import sys
from pathlib import Path

import pytest
import torch

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
    distance = torch.cdist(fake, real)
    assert distance.min(1).values.median() < 0.15, "generated points lie near real ones"
    assert (distance.min(0).values < 0.3).float().mean() > 0.9, "every blob is covered"


def test_the_custom_loop_is_short():
    assert len((EXAMPLES / "custom_loop.py").read_text().splitlines()) < 60


def test_the_custom_encoder_is_scored(load, capsys):
    result = load("custom_encoder").main()
    scores = result["sw_ratio"]["per_encoder"]
    assert set(scores) == {"supervised", "pca", "spectrum"}
    assert scores["spectrum"]["held_out"] and scores["spectrum"]["value"] > 2, "an untrained generator is far from real"
    assert "spectrum" in capsys.readouterr().out
