"""Precision, recall, density, coverage: against scikit-learn's neighbours and prdc, in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metrics.tables import gaussian, numbers, stored
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from irdm.metrics.manifold import METRICS, precision_recall_density_coverage


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
        radius[name] = (
            NearestNeighbors(n_neighbors=k).fit(rows).kneighbors()[0][:, -1]
        )  # a row is not its own neighbour
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
    found = precision_recall_density_coverage({"a": fake}, {"a": real}, k=k)
    assert {name: found[name]["mean"] for name in METRICS} == pytest.approx(by_definition(real, fake, k))
    assert all(found[name]["direction"] == "higher" and found[name]["k"] == k for name in METRICS)


def test_agrees_with_prdc():
    prdc = pytest.importorskip("prdc")
    real, fake = sample()
    expected = prdc.compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=5)
    found = precision_recall_density_coverage({"a": fake}, {"a": real})
    assert {name: found[name]["mean"] for name in METRICS} == pytest.approx(expected)


def test_the_replicates_leave_out_one_fold_and_measure_everything_anew():
    """A score without a fold, from the replicates, is the score of the other rows by definition."""
    from irdm.metrics.intervals import folds

    real, fake = sample()
    found, fold = precision_recall_density_coverage({"a": fake}, {"a": real}, k=3), folds(len(fake), 0)
    for name in METRICS:
        replicates = np.array(found[name]["per_encoder"]["a"]["replicates"])
        expected = np.array([by_definition(real, fake[fold != f], 3)[name] for f in range(10)])
        pseudo = found[name]["mean"] + 9 * (expected.mean() - expected)
        np.testing.assert_allclose(replicates, pseudo, atol=1e-9)


def test_blocks_of_any_size_give_the_same_numbers_from_a_store_larger_than_memory():
    real, fake, control = gaussian(90, 0), gaussian(80, 1, 0.2), gaussian(100, 2)
    one = precision_recall_density_coverage(fake, real, control, held_out=["b"])
    two = precision_recall_density_coverage(
        stored(fake, 23), stored(real, 23), stored(control, 23), held_out=["b"], block=23
    )
    assert numbers(one) == pytest.approx(numbers(two), abs=1e-12)
    assert one["recall"]["rows"] == {"generated": 80, "real": 90, "control": 80}
    assert one["recall"]["held_out"] == pytest.approx(one["recall"]["per_encoder"]["b"]["value"])


def test_what_each_of_the_four_sees():
    """Narrow rows are precise and dense but recall and cover little; wide ones the other way round."""
    real, control = gaussian(300, 0), gaussian(300, 9)
    narrow, wide = ({n: rows * s for n, rows in gaussian(300, 1).items()} for s in (0.3, 3.0))
    narrow, wide, fresh = (
        precision_recall_density_coverage(x, real, control) for x in (narrow, wide, gaussian(300, 1))
    )
    for name in METRICS:
        low, high = fresh[name]["ci95"]
        assert abs(fresh[name]["mean"] - fresh[name]["real_control"]) < 2 * (high - low)
    assert narrow["precision"]["mean"] >= fresh["precision"]["mean"] > 2 * wide["precision"]["mean"]
    assert narrow["recall"]["mean"] < 0.5 * fresh["recall"]["mean"] < wide["recall"]["mean"]
    assert narrow["density"]["mean"] > fresh["density"]["mean"] > wide["density"]["mean"]
    assert narrow["coverage"]["mean"] < 0.8 * fresh["coverage"]["mean"]


def test_the_errors_are_those_of_many_draws():
    real = {"a": torch.randn(500, 6)}
    scores = [precision_recall_density_coverage({"a": torch.randn(300, 6) * 0.9 + 0.15}, real) for _ in range(25)]
    for name in METRICS:
        values = np.array([score[name]["mean"] for score in scores])
        errors = [np.std(score[name]["per_encoder"]["a"]["replicates"], ddof=1) / np.sqrt(10) for score in scores]
        assert 0.6 < np.sqrt(np.mean(np.square(errors))) / values.std(ddof=1) < 1.7


def test_bad_input_is_named():
    real, fake = gaussian(40, 0), gaussian(40, 1)
    with pytest.raises(ValueError, match=r"Encoder 'a': got k = 40 and 40 real rows"):
        precision_recall_density_coverage(fake, real, k=40)
    with pytest.raises(ValueError, match="Encoder 'a': 40 rows are too few for balls of k = 37"):
        precision_recall_density_coverage(fake, real, k=37)
    with pytest.raises(ValueError, match=r"\['b'\] have no features"):
        precision_recall_density_coverage({"a": fake["a"]}, real)
    fake["b"][0] = torch.inf
    with pytest.raises(ValueError, match="Encoder 'b': 1 rows of features hold NaN or infinity"):
        precision_recall_density_coverage(fake, real)
