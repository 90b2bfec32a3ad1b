"""Metrics of images: nearest neighbours and label accuracy."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from irdm.metrics import EvaluationConfig, Real, Sample
from irdm.metrics.accuracy import label_accuracy
from irdm.metrics.neighbours import nearest_neighbour_ratio, nearest_neighbours

CONFIG = EvaluationConfig()


def images(n, seed, noise=0.1):
    """A bright row for each of four classes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    pixels = torch.rand(n, 1, 4, 4, generator=rng) * noise
    pixels[torch.arange(n), 0, labels] += 0.5
    return Sample(pixels, labels, {})


REAL = Real(images(200, 0), images(40, 1), images(40, 2), ())


@pytest.mark.parametrize("chunk", [7, 64, 1024])
def test_neighbours_agree_with_scikit_learn_for_any_chunk(chunk):
    rng = torch.Generator().manual_seed(0)
    queries, references = torch.randn(50, 6, generator=rng) + 100, torch.randn(130, 6, generator=rng) + 100
    distance, index = nearest_neighbours(queries, references, chunk)
    expected, where = NearestNeighbors(n_neighbors=1).fit(references.numpy()).kneighbors(queries.numpy())
    assert index.tolist() == where[:, 0].tolist()
    torch.testing.assert_close(distance, torch.from_numpy(expected[:, 0]).float(), rtol=1e-5, atol=1e-5)


def test_a_row_among_the_references_is_not_its_own_neighbour():
    rows = torch.randn(60, 5)
    expected = NearestNeighbors(n_neighbors=1).fit(rows.numpy()).kneighbors()
    distance, index = nearest_neighbours(rows[10:50], rows, 7, own=torch.arange(10, 50))
    assert index.tolist() == expected[1][10:50, 0].tolist()
    torch.testing.assert_close(distance, torch.from_numpy(expected[0][10:50, 0]).float())
    with pytest.raises(ValueError, match="two references or more"):
        nearest_neighbours(rows[:1], rows[:1], own=torch.zeros(1, dtype=torch.int64))


def test_the_replicates_of_the_neighbour_ratio_average_to_it():
    score = nearest_neighbour_ratio(images(160, 3), REAL, CONFIG)
    assert len(score["replicates"]) == 4
    assert sum(score["replicates"]) / 4 == pytest.approx(score["value"])
    assert nearest_neighbour_ratio(images(40, 3), REAL, CONFIG)["replicates"] == pytest.approx([1], abs=0.2)


def test_copies_are_at_exactly_zero_and_fresh_images_at_one():
    copies = nearest_neighbour_ratio(REAL.train, REAL, CONFIG)
    assert copies["value"] == copies["generated"] == 0 < copies["test"]
    assert nearest_neighbour_ratio(images(160, 3), REAL, CONFIG)["value"] == pytest.approx(1, abs=0.1)
    assert nearest_neighbour_ratio(images(160, 3, noise=0.5), REAL, CONFIG)["value"] > 2


def test_neighbours_of_unfit_rows_are_refused():
    rows = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(0, 2\)"):
        nearest_neighbours(rows, torch.zeros(0, 2))
    with pytest.raises(ValueError, match="NaN"):
        nearest_neighbours(rows + torch.nan, rows)
    with pytest.raises(ValueError, match="duplicates"):
        nearest_neighbour_ratio(REAL.train, Real(REAL.train, REAL.val, REAL.train, ()), CONFIG)


def test_accuracy_counts_images_that_show_their_label():
    fresh = images(80, 4)
    score = label_accuracy(fresh, REAL, CONFIG)
    assert score == {
        "generated": 1.0, "real_test": 1.0, "classifier": "SVC(RBF) on pixels", "replicates": [1.0, 1.0],
    }  # fmt: skip
    wrong = Sample(fresh.images, torch.where(torch.arange(80) < 20, (fresh.labels + 1) % 4, fresh.labels), {})
    assert label_accuracy(wrong, REAL, EvaluationConfig(classifier_rows=40))["generated"] == 0.75


def test_one_class_has_no_accuracy():
    plain = Sample(REAL.train.images, torch.zeros_like(REAL.train.labels), {})
    assert set(label_accuracy(plain, Real(plain, plain, plain, ()), CONFIG).values()) == {None}
