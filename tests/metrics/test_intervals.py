"""Replicates and their intervals: against SciPy's Student, the textbook jackknife, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from irdm.metrics.intervals import (
    bootstrap_interval,
    chance,
    fold_means,
    folds,
    holm,
    interval,
    jackknife,
    score_of,
    standard_error,
    student,
    tightened,
    together,
    worst,
)
from irdm.metrics.score import Estimate, Score


def test_chances_are_those_of_scipy():
    one, two = np.random.default_rng(0).normal([[0.0], [0.5]], [[1.0], [2.0]], (2, 12))
    sides = [(standard_error(torch.from_numpy(side)), 11) for side in (one, two)]
    error, freedom = together(*sides)
    for direction, alternative in (("real", "two-sided"), ("lower", "greater"), ("higher", "less")):
        expected = scipy.stats.ttest_ind(one, two, equal_var=False, alternative=alternative).pvalue
        assert chance(one.mean() - two.mean(), error, freedom, direction) == pytest.approx(expected, rel=1e-6)
    assert student(9) == pytest.approx(scipy.stats.t.ppf(0.975, 9))


def test_without_an_error_a_difference_is_certain():
    assert [chance(d, 0.0, 9, "real") for d in (-1, 0, 1)] == [0, 1, 0]
    assert [chance(d, 0.0, 9, "lower") for d in (-1, 0, 1)] == [1, 1, 0]
    assert [chance(d, 0.0, 9, "higher") for d in (-1, 0, 1)] == [0, 1, 1]


def test_holm_is_that_of_scipy_and_weights_are_shares_of_the_error():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})  # Holm's textbook step by step
    weighted = holm({"first": 0.02, "x": 0.02, "y": 0.9}, {"first": 0.5, "x": 0.25, "y": 0.25})
    assert weighted == pytest.approx({"first": 0.04, "x": 0.04, "y": 0.9})  # then x has the rest: 0.02 * 0.5 / 0.25


def test_the_worst_encoder_is_corrected_for_their_number():
    estimates = {name: Estimate(value=1, p_real=p) for name, p in (("a", 0.5), ("b", 0.01), ("c", None))}
    assert worst(Score(label="x", direction="lower", says="", encoders=estimates)) == ("b", 0.02)
    assert worst(Score(label="x", direction="lower", says="", encoders={"c": estimates["c"]})) is None


def test_the_interval_of_replicates_is_that_of_scipy():
    rows = torch.randn(9, dtype=torch.float64) + 3
    expected = scipy.stats.t.interval(0.95, 8, loc=rows.mean().item(), scale=scipy.stats.sem(rows.numpy()))
    assert interval(rows) == pytest.approx(expected, rel=1e-4)


def test_the_jackknife_of_a_mean_gives_back_the_rows_moved_to_no_other_mean():
    rows = torch.randn(12, dtype=torch.float64)
    without = (rows.sum() - rows) / 11
    torch.testing.assert_close(jackknife(rows.mean().item(), without), rows)
    torch.testing.assert_close(fold_means(rows, torch.arange(12)), rows)
    moved = jackknife(5.0, without)
    assert moved.mean().item() == pytest.approx(5)
    torch.testing.assert_close(moved - moved.mean(), rows - rows.mean())


@pytest.mark.parametrize(("away", "most"), [(0.0, 1.45), (0.1, 1.15), (1.0, 1.15)])
def test_tightened_replicates_have_the_variance_of_a_squared_distance(away, most):
    """|mean|^2 of 100 normal rows in 5 dimensions: variance 4 |m|^2 / n + 2 d / n^2, the second part degenerate."""
    n, d = 100, 5
    rows = torch.from_numpy(np.random.default_rng(0).normal(away, 1, (400, n, d)))
    linear, quadratic = 4 * d * away**2 / n, 2 * d / n**2
    plain, tight = [], []
    for sample in rows:
        without = (sample.sum(0) - sample.reshape(10, 10, d).sum(1)) / 90
        found = jackknife(sample.mean(0).square().sum().item(), without.square().sum(1))
        plain.append(standard_error(found) ** 2)
        tight.append(standard_error(tightened(found, quadratic)) ** 2)
    assert np.mean(plain) == pytest.approx(linear + (2 + 1 / 9) * quadratic, rel=0.15)
    assert 0.85 < np.mean(tight) / (linear + quadratic) < most


def test_folds_are_even_random_and_repeatable():
    fold = folds(103, 0)
    assert sorted(torch.bincount(fold).tolist()) == [10] * 7 + [11] * 3
    assert torch.equal(fold, folds(103, 0))
    assert not torch.equal(fold, folds(103, 1))
    assert not torch.equal(fold, torch.arange(103) % 10)
    assert folds(8, 0).max() == 7


@pytest.mark.parametrize("count", [8, 60])
def test_the_bootstrap_covers_the_mean(count):
    rows = torch.from_numpy(np.random.default_rng(0).normal(2, 1, (200, count)))
    found = [bootstrap_interval(row, seed=0, resamples=400) for row in rows]
    assert 180 <= sum(low < 2 < high for low, high in found) <= 199  # 190 expected; outside: probability 0.002


def test_a_score_has_means_over_groups_and_an_interval_that_counts_correlation():
    a = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    alike = score_of("x", "lower", "says", {"a": a, "b": a}, ["b"], controls={"a": 1.0, "b": 3.0}, notes={"rows": 4})
    opposed = score_of("x", "lower", "says", {"a": a, "b": -a}, [])
    assert alike.encoders["a"].ci95 == alike.mean.ci95 == alike.held_out.ci95 == pytest.approx(interval(a))
    assert opposed.mean.ci95 == pytest.approx((0, 0))
    assert (alike.mean.value, alike.held_in.value, alike.mean.control, alike.held_out.control) == (2.5, 2.5, 2.0, 3.0)
    assert (opposed.held_out, opposed.mean.control) == (None, None)
    assert alike.encoders["b"].replicates == tuple(a.tolist())
    assert (alike.label, alike.direction, alike.says, alike.notes) == ("x", "lower", "says", {"rows": 4})
    apart = score_of("x", "lower", "says", {"a": a, "b": a}, ["b"], means=False, details={"a": {"name": "FID"}})
    assert (apart.mean, apart.held_in, apart.held_out) == (None, None, None)
    assert apart.encoders["a"].notes == {"name": "FID"}


def test_nothing_leaves_the_limits_of_a_score_and_zero_has_no_sign():
    wild = torch.tensor([-1.0, 0.0, 0.5, 0.4]).double()
    found = score_of("x", "lower", "says", {"a": wild}, [], limits=(0, 0.3)).mean
    assert found.value == 0 and found.ci95 == (0, 0.3)
    assert "-" not in f"{found.value:.2f} {found.ci95[0]:.2f}"
    assert found.replicates == tuple(wild.tolist()), "differences of replicates need them as they are"


@pytest.mark.parametrize("direction", ["real", "lower", "higher"])
def test_the_chance_of_real_images_is_calibrated(direction):
    """Shares of 300 judged and of 300 fresh rows of one kind, 600 times: p below a is as likely as a."""
    hits = torch.from_numpy(np.random.default_rng(1).random((600, 2, 300)) < 0.9).double()
    fold = folds(300, 0)
    chances = np.array(
        [
            score_of("x", direction, "says", {"a": fold_means(ours, fold)}, [], controls={"a": fold_means(real, fold)})
            .encoders["a"]
            .p_real
            for ours, real in hits
        ]
    )
    for level, most in ((0.05, 45), (0.01, 14)):  # 30 and 6 expected: above has probability 0.005
        assert level * 600 / 3 <= np.sum(chances < level) <= most


def test_a_control_whose_error_is_not_known_gives_no_chance():
    rows = torch.arange(5.0).double()
    found = score_of("x", "lower", "says", {"a": rows}, [], controls={"a": 1.0}).mean
    assert (found.control, found.control_error, found.p_real) == (1.0, None, None)
