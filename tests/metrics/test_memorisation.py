"""Memorisation: copies, noisy copies, fresh rows and rows far away; by definition on whole matrices; in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from metrics.tables import gaussian, numbers, real_side, stored, table
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from irdm.metrics import EvaluationConfig
from irdm.metrics.memorisation import memorisation
from irdm.metrics.neighbours import nearest_neighbours

TRAIN, FRESH = gaussian(600, 0), gaussian(200, 1)


def scores(fake, train=TRAIN, fresh=FRESH, held_out=()):
    return memorisation(table(fake), real_side(train, fresh, held_out), EvaluationConfig())


@pytest.mark.parametrize("chunk", [7, 64, 1024])
@pytest.mark.parametrize("k", [1, 4])
def test_neighbours_agree_with_scikit_learn_for_any_chunk(chunk, k):
    rng = torch.Generator().manual_seed(0)
    queries, references = torch.randn(50, 6, generator=rng) + 100, torch.randn(130, 6, generator=rng) + 100
    distance, index = nearest_neighbours(queries, references, k, chunk=chunk)
    expected, where = NearestNeighbors(n_neighbors=k).fit(references.numpy()).kneighbors(queries.numpy())
    assert index.tolist() == where.tolist()
    torch.testing.assert_close(distance, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)


def test_a_row_among_the_references_is_not_its_own_neighbour():
    rows = torch.randn(60, 5)
    expected = NearestNeighbors(n_neighbors=1).fit(rows.numpy()).kneighbors()
    distance, index = nearest_neighbours(rows[10:50], rows, own=torch.arange(10, 50), chunk=7)
    assert index.tolist() == expected[1][10:50].tolist()
    torch.testing.assert_close(distance, torch.from_numpy(expected[0][10:50]).float())
    with pytest.raises(ValueError, match="m at least 2"):
        nearest_neighbours(rows[:1], rows[:1], own=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(60, 5\) and \(0, 5\)"):
        nearest_neighbours(rows, rows[:0])
    with pytest.raises(ValueError, match="NaN"):
        nearest_neighbours(rows + torch.nan, rows)


def test_agrees_with_the_definitions():
    fake = {"a": torch.cat([gaussian(100, 2)["a"], TRAIN["a"][:10], TRAIN["a"][20:40] + 0.1])}
    found = scores(fake, {"a": TRAIN["a"]}, {"a": FRESH["a"]})
    to_train = pairwise_distances(fake["a"].double().numpy(), TRAIN["a"].double().numpy())
    real = pairwise_distances(FRESH["a"].double().numpy(), TRAIN["a"].double().numpy()).min(1)
    among = pairwise_distances(TRAIN["a"].double().numpy())
    np.fill_diagonal(among, np.inf)
    to_train[100:110][to_train[100:110] < 1e-6] = 0
    authentic = to_train.min(1) > among.min(1)[to_train.argmin(1)]
    expected = scipy.stats.mannwhitneyu(real, to_train.min(1)).statistic / (130 * 200)
    assert found["closeness"].mean.value == pytest.approx(expected, abs=1e-4)
    assert found["authenticity"].mean.value == pytest.approx(authentic.mean())
    usual = np.sort(real)[(len(real) - 1) // 2]
    near = to_train.min(1) < 0.1 * usual
    assert 10 <= near.sum() < 40 and found["copies"].mean.value == pytest.approx(near.mean())
    assert found["copies"].mean.control == 0
    median = np.sort(to_train.min(1))[(130 - 1) // 2]
    assert found["nearest_neighbour_ratio"].mean.value == pytest.approx(median / usual, rel=1e-5)
    sizes = [found["closeness"].notes[key] for key in ("rows", "train_rows", "fresh_rows")]
    assert sizes == [130, 600, 200]


def test_fresh_rows_look_fresh_and_copies_do_not():
    fresh = scores(gaussian(200, 3))
    closeness, authenticity = fresh["closeness"].mean, fresh["authenticity"].mean
    assert 0.42 < closeness.value < 0.58
    assert closeness.control == 0.5
    assert abs(authenticity.value - authenticity.control) < 0.1
    assert fresh["nearest_neighbour_ratio"].mean.value == pytest.approx(1, abs=0.1)
    copies = scores({name: rows[:100] for name, rows in TRAIN.items()})
    assert [copies[name].mean.value for name in copies] == [1, 0, 1, 0]
    near = {name: rows[:200] + 0.05 * torch.randn(200, rows.shape[1]) for name, rows in TRAIN.items()}
    noisy = scores(near)
    assert noisy["closeness"].mean.ci95[0] > 0.9
    assert noisy["authenticity"].mean.ci95[1] < 0.1
    assert fresh["copies"].mean.value == 0 == fresh["copies"].mean.ci95[0]
    mixed = {name: torch.cat([rows[:60], gaussian(140, 4)[name]]) for name, rows in TRAIN.items()}
    partly = scores(mixed)
    assert partly["closeness"].mean.ci95[0] > 0.55
    assert partly["copies"].mean.value == pytest.approx(0.3) and partly["copies"].mean.ci95[0] > 0.2
    far = scores(gaussian(200, 3, 5.0))
    assert far["closeness"].mean.value < 0.01
    assert far["authenticity"].mean.value > 0.99
    assert far["nearest_neighbour_ratio"].mean.ci95[0] > 2


def test_no_interval_leaves_the_values_that_a_share_can_have():
    mixed = {name: torch.cat([rows[:1], gaussian(99, 4)[name]]) for name, rows in TRAIN.items()}
    for name, score in scores(mixed).items():
        for estimate in (score.mean, *score.encoders.values()):
            low, high = estimate.ci95
            assert 0 <= low <= high and (high <= 1 or name == "nearest_neighbour_ratio")
            assert "-" not in f"{low:.2f}{estimate.value:.2f}"


def test_a_store_larger_than_memory_gives_the_same_numbers(monkeypatch):
    fake = gaussian(90, 3)
    one = scores(fake, held_out=["b"])
    monkeypatch.setattr("irdm.metrics.neighbours.CHUNK", 41)
    two = scores(stored(fake, 41), stored(TRAIN, 50), stored(FRESH, 50), held_out=["b"])
    assert numbers(one) == pytest.approx(numbers(two), abs=1e-6)
    assert one["closeness"].held_in.value == one["closeness"].encoders["a"].value


def test_held_out_images_that_are_training_images_are_refused():
    with pytest.raises(ValueError, match="Encoder 'a': half of the fresh real images are also train images"):
        scores(gaussian(50, 3), TRAIN, {name: rows[:100] for name, rows in TRAIN.items()})
