"""Class shares: a class that is missing, rare or too frequent is named, whether or not the judged images have classes;
real draws are accused as often as stated; the classifier is scikit-learn's ridge regression."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from metrics.tables import clusters, numbers, real_side, stored
from sklearn.linear_model import RidgeCV

from irdm.conditions import Classes, Unconditional
from irdm.evaluation.witnesses import witnesses
from irdm.metrics import METRICS, EvaluationConfig, Table
from irdm.metrics.classes import PENALTIES, leading, ridge
from irdm.ops.gaussian import Moments

DIMS = (("a", 8), ("b", 5), ("c", 6))
NAMES = [f"kind {k}" for k in range(10)]


def drawn(count, seed, shares=None, classes=True, apart=1.2):
    """Rows of ten classes, of which four in ten are told right, as many of each as chance makes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.ones(10) if shares is None else shares, count, replacement=True, generator=rng)
    features = clusters(labels, seed, apart=apart, dims=DIMS)
    return Table(features, Classes(labels, NAMES) if classes else Unconditional(count))


def scored(judged, train=None, fresh=None):
    real = real_side(drawn(1000, 1) if train is None else train, drawn(800, 2) if fresh is None else fresh, ("c",))
    return METRICS["class_shares"](judged, real, EvaluationConfig())


def without(kind, times=0.0):
    shares = torch.ones(10)
    shares[kind] = times
    return shares


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("times", [0.0, 2.5])
def test_a_class_that_is_missing_or_too_frequent_is_named(classes, times):
    found = scored(drawn(600, 3, without(4, times), classes))["class_shares"]
    for estimate in (found.mean, found.held_in):
        assert estimate.p_real < 1e-3 and estimate.notes["class"] == "kind 4"
        assert estimate.notes["share"] == pytest.approx(times, abs=0.6)
        assert estimate.ci95[0] > estimate.control > 1.5
    if times == 0:  # together encoders tell more
        assert found.mean.value > max(part.value for part in found.encoders.values())
    assert found.held_out.value == pytest.approx(found.encoders["c"].value)
    coverage = next(one for one in witnesses({"class_shares": found}) if one.name == "coverage")
    assert coverage.objects and coverage.evidence[0].means == "kinds of images are missing, or too rare"
    assert coverage.evidence[0].says.startswith("class kind 4 ")


def test_images_that_have_another_class_than_asked_for_are_seen():
    def even(count, seed):
        labels = torch.arange(count) % 10
        return Table(clusters(labels, seed, apart=1.2, dims=DIMS), Classes(labels, NAMES))

    real, labels = (even(1000, 1), even(800, 2)), torch.arange(600) % 10
    for wrong in (False, True):
        shown = torch.where(labels == 7, 2, labels) if wrong else labels
        judged = Table(clusters(shown, 3, apart=1.2, dims=DIMS), Classes(labels, NAMES))
        found = scored(judged, *real)["class_shares"]
        assert found.notes["law"] == "stratified"
        assert (found.mean.p_real < 1e-6) == wrong
    assert found.mean.notes["class"] in ("kind 2", "kind 7")


def test_real_draws_have_the_chances_that_are_stated():
    chances = [
        scored(*(drawn(count, 3 * seed + side, classes=side > 0) for side, count in enumerate((200, 300, 300))))
        for seed in range(10, 40)
    ]
    chances = np.array([one["class_shares"].mean.p_real for one in chances])
    assert (chances < 0.05).sum() <= 5 and chances.min() > 1e-4  # of 30: more has probability 0.3%


def test_the_classifier_is_that_of_scikit_learn():
    rows, luck = torch.randn(2, 80, 12, generator=torch.Generator().manual_seed(0)).double() + 3
    targets = torch.nn.functional.one_hot((rows + luck)[:, :3].argmax(1), 3).double()
    known = RidgeCV(alphas=PENALTIES).fit(rows.numpy(), targets.numpy())
    torch.testing.assert_close(ridge(rows, targets), torch.from_numpy(known.coef_).T)


def test_leading_directions_are_white():
    rows = torch.randn(300, 90, generator=torch.Generator().manual_seed(0)).double() * torch.linspace(0.1, 9, 90) + 5
    mean, axes = leading(Moments.of([rows]))
    assert axes.shape == (90, 64)
    torch.testing.assert_close(((rows - mean) @ axes).T.cov(), torch.eye(64).double())


def test_a_store_gives_the_same_numbers():
    sides = drawn(150, 3), drawn(200, 1), drawn(200, 2)
    one = scored(*sides)
    two = scored(*(Table(stored(side.features, 4096), side.conditions) for side in sides))
    assert numbers(one) == pytest.approx(numbers(two))


def test_without_classes_or_with_few_rows_nothing_is_said():
    plain = [Table(part.features, Unconditional(len(part))) for part in (drawn(300, 1), drawn(300, 2))]
    assert scored(drawn(300, 3), *plain) == {}
    assert scored(drawn(90, 3)) == {}
    same = [Table({name: torch.ones(200, dim) for name, dim in DIMS}, Classes(torch.arange(200) % 10, NAMES))] * 3
    alike = scored(*same)["class_shares"].mean
    assert alike.value == 0 and alike.p_real == 1 and alike.notes["share"] is None
    assert scipy.stats.norm.sf(alike.control) * 2 * 10 == pytest.approx(10 * (1 - 0.5**0.1))
