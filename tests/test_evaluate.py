"""A whole evaluation on the digits: fresh real images score 1, copies are found out, nothing depends on batches."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from irdm.data import DigitsConfig, Split
from irdm.encoders.base import Battery, Encoder
from irdm.evaluate import EvaluationConfig, QuickCheck, evaluate, generate

CONFIG = EvaluationConfig(directions=64, replicates=3, rff_features=256, resamples=16, unseen_draws=4)
DATA = DigitsConfig().build()


def battery(held_out=("two",)):
    torch.manual_seed(0)
    encoders = {
        name: Encoder(name, 16, nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)))
        for name in ("zero", "one", "two")
    }
    return Battery(encoders, [name for name in encoders if name not in held_out], held_out)


class Replay(nn.Module):
    """Images of a split, of the class asked for, chosen by the noise; `haze` mixes in grey."""

    noise_shape = (2,)

    def __init__(self, split: Split, haze: float = 0.0):
        super().__init__()
        self.split, self.haze = split, haze
        self.modes: list[bool] = []

    def forward(self, noise, labels):
        self.modes.append(self.training)
        images = torch.empty(len(labels), 1, 8, 8)
        for label in labels.unique():
            pool, wanted = self.split.images[self.split.labels == label], labels == label
            images[wanted] = pool[(torch.special.ndtr(noise[wanted, 0]) * len(pool)).long().clamp(max=len(pool) - 1)]
        return images * (1 - self.haze) + 0.5 * self.haze


def test_copies_of_train_look_better_than_real_except_to_unseen_rows_and_neighbours():
    stages: list[str] = []
    evaluation = evaluate(Replay(DATA.train), battery(), DATA, CONFIG, progress=stages.append)
    result = json.loads(json.dumps(evaluation.result, allow_nan=False))
    assert result["sw_ratio"]["mean"] < 1
    assert 0.9 < result["sw_ratio_unseen"]["mean"] < 1.2
    assert 0.8 < result["sw_ratio"]["real_control"] < 1.2
    assert result["nearest_neighbour_ratio"]["value"] == 0
    assert result["label_accuracy"]["generated"] > 0.99
    assert result["label_accuracy"]["real_test"] > 0.95
    held_out = {name: row["held_out"] for name, row in result["sw_ratio"]["per_encoder"].items()}
    assert held_out == {"zero": False, "one": False, "two": True}
    n = min(len(DATA.val), len(DATA.test))
    assert result["samples"] == {"generated": 3 * n, "replicates": 3, "train": len(DATA.train), "val": n, "test": n}
    assert "sw_ratio" in stages


def test_the_gallery_shows_ten_of_each_class_beside_real_ones_and_their_neighbours():
    arrays = evaluate(Replay(DATA.test), battery(), DATA, CONFIG).arrays
    assert arrays["generated"].shape == arrays["real"].shape == arrays["neighbours"].shape == (100, 1, 8, 8)
    assert arrays["generated"].dtype == np.uint8
    assert arrays["neighbour_distance"].dtype == np.float32
    assert arrays["generated_labels"].tolist() == arrays["real_labels"].tolist() == sorted([*range(10)] * 10)
    gap = (arrays["generated"] / 255.0 - arrays["neighbours"] / 255.0).reshape(100, -1)
    np.testing.assert_allclose(np.linalg.norm(gap, axis=1), arrays["neighbour_distance"], atol=0.02)


def test_nothing_depends_on_the_micro_batch():
    generator = Linear()
    first, second = (
        evaluate(generator, battery(), DATA, CONFIG.model_copy(update={"micro_batch": size})).result
        for size in (4096, 97)
    )
    assert flatten(first) == pytest.approx(flatten(second), rel=1e-3)


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    generator = Linear()
    results = [evaluate(generator, battery(), DATA, CONFIG.model_copy(update={"seed": s})).result for s in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


def test_a_generator_runs_in_evaluation_mode_and_is_put_back():
    generator = Replay(DATA.train).train()
    generate(generator, DATA.val.labels, 0, 64, "cpu")
    assert generator.training
    assert not any(generator.modes)


def test_the_quick_check_follows_the_generator():
    check = QuickCheck(battery(), DATA, CONFIG)
    fresh, hazy = check(Replay(DATA.test)), check(Replay(DATA.test, haze=0.5))
    assert fresh == check(Replay(DATA.test))
    assert set(fresh) == {"held_in", "held_out"}
    assert all(0.8 < fresh[group] < 1.8 and hazy[group] > 2 * fresh[group] for group in fresh)
    assert set(QuickCheck(battery(held_out=()), DATA, CONFIG)(Replay(DATA.test))) == {"held_in"}


@pytest.mark.parametrize(("value", "message"), [(torch.nan, "NaN or infinity in 299 of 299"), (3.0, "expected 0 to 1")])
def test_bad_images_are_refused(value, message):
    generator = Replay(Split(DATA.train.images * 0 + value, DATA.train.labels))
    with pytest.raises(ValueError, match=message):
        generate(generator, DATA.val.labels, 0, 64, "cpu")


def test_too_few_rows_and_a_battery_that_does_not_add_up_are_refused():
    few = dataclasses.replace(DATA, val=Split(DATA.val.images[:5], DATA.val.labels[:5]))
    with pytest.raises(ValueError, match=r"'val': 5.*needs at least 16 in train"):
        QuickCheck(battery(), few, CONFIG)
    panel = battery()
    del panel.encoders["two"]
    with pytest.raises(ValueError, match="two"):
        evaluate(Linear(), panel, DATA, CONFIG)


class Linear(nn.Module):
    """Smooth in its noise, so that rounding stays rounding."""

    noise_shape = (5,)

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))

    def forward(self, noise, labels):
        return torch.sigmoid(noise @ self.weight + labels[:, None] / 10).unflatten(1, (1, 8, 8))


def flatten(result: dict, prefix: str = "") -> dict[str, float]:
    """Every number of a nested result by its path."""
    numbers = {}
    for key, value in result.items():
        if isinstance(value, dict):
            numbers |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            numbers |= flatten({str(i): item for i, item in enumerate(value)}, f"{prefix}{key}.")
        elif isinstance(value, (int, float)):
            numbers[f"{prefix}{key}"] = value
    return numbers
