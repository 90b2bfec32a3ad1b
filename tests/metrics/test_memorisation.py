"""Memorisation: copies, noisy copies, fresh rows and rows far away; by definition on whole matrices; in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from metrics.tables import gaussian, numbers, stored
from sklearn.metrics import pairwise_distances

from irdm.metrics.memorisation import memorisation

TRAIN, FRESH = gaussian(600, 0), gaussian(200, 1)


def test_agrees_with_the_definitions():
    fake = {"a": torch.cat([gaussian(100, 2)["a"], TRAIN["a"][:10], TRAIN["a"][20:40] + 0.1])}
    train, fresh = {"a": TRAIN["a"]}, {"a": FRESH["a"]}
    found = memorisation(fake, train, fresh)
    to_train = pairwise_distances(fake["a"].double().numpy(), TRAIN["a"].double().numpy())
    real = pairwise_distances(FRESH["a"].double().numpy(), TRAIN["a"].double().numpy()).min(1)
    among = pairwise_distances(TRAIN["a"].double().numpy())
    np.fill_diagonal(among, np.inf)
    to_train[100:110][to_train[100:110] < 1e-6] = 0
    authentic = to_train.min(1) > among.min(1)[to_train.argmin(1)]
    expected = scipy.stats.mannwhitneyu(real, to_train.min(1)).statistic / (130 * 200)
    assert found["closeness"]["mean"] == pytest.approx(expected, abs=1e-4)
    assert found["authenticity"]["mean"] == pytest.approx(authentic.mean())
    near = to_train.min(1) < 0.1 * np.sort(real)[(len(real) - 1) // 2]
    assert 10 <= near.sum() < 40 and found["copies"]["mean"] == pytest.approx(near.mean())
    assert found["copies"]["real_control"] == 0
    assert found["closeness"]["rows"] == {"generated": 130, "train": 600, "fresh": 200}


def test_fresh_rows_look_fresh_and_copies_do_not():
    fresh = memorisation(gaussian(200, 3), TRAIN, FRESH)
    closeness, authenticity = fresh["closeness"], fresh["authenticity"]
    assert 0.42 < closeness["mean"] < 0.58
    assert closeness["real_control"] == 0.5
    assert abs(authenticity["mean"] - authenticity["real_control"]) < 0.1
    copies = memorisation({name: rows[:100] for name, rows in TRAIN.items()}, TRAIN, FRESH)
    assert (copies["closeness"]["mean"], copies["authenticity"]["mean"]) == (1.0, 0.0)
    near = {name: rows[:200] + 0.05 * torch.randn(200, rows.shape[1]) for name, rows in TRAIN.items()}
    noisy = memorisation(near, TRAIN, FRESH)
    assert noisy["closeness"]["ci95"][0] > 0.9
    assert noisy["authenticity"]["ci95"][1] < 0.1
    assert (fresh["copies"]["mean"], copies["copies"]["mean"]) == (0.0, 1.0)
    mixed = {name: torch.cat([rows[:60], gaussian(140, 4)[name]]) for name, rows in TRAIN.items()}
    partly = memorisation(mixed, TRAIN, FRESH)
    assert partly["closeness"]["ci95"][0] > 0.55
    assert partly["copies"]["mean"] == pytest.approx(0.3) and partly["copies"]["ci95"][0] > 0.2
    far = memorisation(gaussian(200, 3, 5.0), TRAIN, FRESH)
    assert far["closeness"]["mean"] < 0.01
    assert far["authenticity"]["mean"] > 0.99


def test_blocks_of_any_size_give_the_same_numbers_from_a_store_larger_than_memory():
    fake = gaussian(90, 3)
    one = memorisation(fake, TRAIN, FRESH, held_out=["b"])
    two = memorisation(stored(fake, 41), stored(TRAIN, 41), stored(FRESH, 41), held_out=["b"], block=41)
    assert numbers(one) == pytest.approx(numbers(two), abs=1e-6)
    assert one["closeness"]["held_in"] == pytest.approx(one["closeness"]["per_encoder"]["a"]["value"])


def test_bad_input_is_named():
    fake = gaussian(50, 3)
    with pytest.raises(ValueError, match="Encoder 'a': half of the fresh real rows are also train rows"):
        memorisation(fake, TRAIN, {name: rows[:100] for name, rows in TRAIN.items()})
    with pytest.raises(ValueError, match=r"\['b'\] have no features"):
        memorisation({"a": fake["a"]}, TRAIN, FRESH)
    with pytest.raises(ValueError, match="Encoder 'b': features"):
        memorisation({"a": fake["a"], "b": fake["a"]}, TRAIN, FRESH)
    fake["a"][0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        memorisation(fake, TRAIN, FRESH)
