"""Precision, recall, density, coverage: against scikit-learn's neighbours and prdc, in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metrics.tables import gaussian, numbers, real_side, stored, table
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from irdm.metrics import EvaluationConfig
from irdm.metrics.intervals import folds
from irdm.metrics.manifold import SAYS, precision_recall_density_coverage


def scores(fake, train, val=None, k=5, **options):
    config = EvaluationConfig(
        neighbours=k, **{name: options.pop(name) for name in ["manifold_rows"] if name in options}
    )
    return precision_recall_density_coverage(table(fake), real_side(train, val or train, **options), config)


def sample():
    """Real and generated rows with a large mean, and some copies among them."""
    real, fake = gaussian(150, 0, 50.0)["a"], gaussian(120, 1, 50.2)["a"]
    fake[:5], fake[5:8] = real[:5], fake[5]
    return real, fake


def by_definition(real, fake, k):
    """From whole matrices of distances, radii by scikit-learn's neighbours."""
    real, fake = real.double().numpy(), fake.double().numpy()
    radius = {}
    for name, rows in (("real", real), ("fake", fake)):
        radius[name] = NearestNeighbors(n_neighbors=k).fit(rows).kneighbors()[0][:, -1]  # a row is not its own
    distance = pairwise_distances(real, fake, metric="sqeuclidean") ** 0.5
    inside = distance < radius["real"][:, None]
    return {
        "precision": inside.any(0).mean(),
        "recall": (distance < radius["fake"]).any(1).mean(),
        "density": inside.sum(0).mean() / k,
        "coverage": inside.any(1).mean(),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_agrees_with_scikit_learn(k):
    real, fake = sample()
    found = scores({"a": fake}, {"a": real}, k=k)
    assert {name: found[name].mean.value for name in SAYS} == pytest.approx(by_definition(real, fake, k))
    assert all(found[name].direction == "real" and found[name].notes["neighbours"] == k for name in SAYS)


def test_agrees_with_prdc():
    prdc = pytest.importorskip("prdc")
    real, fake = sample()
    expected = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=5)
    found = scores({"a": fake}, {"a": real})
    assert {name: found[name].mean.value for name in SAYS} == pytest.approx(expected)


def test_the_replicates_leave_out_one_fold_and_measure_everything_anew():
    """A score without a fold, from the replicates, is the score of the other rows by definition."""
    real, fake = sample()
    found, fold = scores({"a": fake}, {"a": real}, k=3), folds(len(fake), 0)
    for name in SAYS:
        replicates = np.array(found[name].encoders["a"].replicates)
        expected = np.array([by_definition(real, fake[fold != f], 3)[name] for f in range(10)])
        pseudo = found[name].mean.value + 9 * (expected.mean() - expected)
        np.testing.assert_allclose(replicates, pseudo, atol=1e-9)


def test_blocks_of_any_size_give_the_same_numbers_from_a_store_larger_than_memory(monkeypatch):
    train, fake, val = gaussian(90, 0), gaussian(80, 1, 0.2), gaussian(100, 2)
    one = scores(fake, train, val, held_out=["b"])
    monkeypatch.setattr("irdm.metrics.manifold.BLOCK", 23)
    two = scores(stored(fake, 23), stored(train, 50), stored(val, 23), held_out=["b"])
    assert numbers(one) == pytest.approx(numbers(two), abs=1e-12)
    assert [one["recall"].notes[key] for key in ("rows", "real_rows", "control_rows")] == [80, 90, 80]
    assert one["recall"].held_out.value == one["recall"].encoders["b"].value


def test_at_most_so_many_rows_are_compared():
    found = scores(gaussian(100, 1), gaussian(120, 0), gaussian(110, 2), manifold_rows=70)
    assert [found["density"].notes[key] for key in ("rows", "real_rows", "control_rows")] == [70, 70, 70]
    assert found["density"].mean.value == pytest.approx(found["density"].mean.control, rel=0.3)


def test_what_each_of_the_four_sees():
    """Narrow rows are precise and dense but recall and cover little; wide ones the other way round."""
    train, val = gaussian(300, 0), gaussian(300, 9)
    narrow, wide = ({n: rows * s for n, rows in gaussian(300, 1).items()} for s in (0.3, 3.0))
    narrow, wide, fresh = (scores(x, train, val) for x in (narrow, wide, gaussian(300, 1)))
    for name in SAYS:
        low, high = fresh[name].mean.ci95
        assert abs(fresh[name].mean.value - fresh[name].mean.control) < 2 * (high - low)
        if name != "density":
            assert low >= 0 and high <= 1
    value = {
        key: {name: score.mean.value for name, score in found.items()}
        for key, found in (("narrow", narrow), ("wide", wide), ("fresh", fresh))
    }
    assert value["narrow"]["precision"] >= value["fresh"]["precision"] > 2 * value["wide"]["precision"]
    assert value["narrow"]["recall"] < 0.5 * value["fresh"]["recall"] < value["wide"]["recall"]
    assert value["narrow"]["density"] > value["fresh"]["density"] > value["wide"]["density"]
    assert value["narrow"]["coverage"] < 0.8 * value["fresh"]["coverage"]


def test_the_errors_are_those_of_many_draws():
    train = {"a": torch.randn(500, 6)}
    found = [scores({"a": torch.randn(300, 6) * 0.9 + 0.15}, train) for _ in range(25)]
    for name in SAYS:
        values = np.array([score[name].mean.value for score in found])
        errors = [np.std(score[name].mean.replicates, ddof=1) / np.sqrt(10) for score in found]
        assert 0.6 < np.sqrt(np.mean(np.square(errors))) / values.std(ddof=1) < 1.7


def test_too_few_rows_are_named():
    train, fake = gaussian(40, 0), gaussian(40, 1)
    with pytest.raises(ValueError, match=r"Encoder 'a': got k = 40 and 40 real rows"):
        scores(fake, train, k=40)
    with pytest.raises(ValueError, match="Encoder 'a': 40 rows are too few for balls of k = 37"):
        scores(fake, train, k=37)
