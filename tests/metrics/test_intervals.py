"""Replicates and their intervals: against SciPy's Student, the textbook jackknife, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from irdm.metrics.intervals import bootstrap_interval, fold_means, folds, interval, jackknife, score_of, student


@pytest.mark.parametrize("freedom", [3, 4, 5, 7, 9, 30, 1000])
def test_students_quantile(freedom):
    assert student(freedom + 1) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=0.01 if freedom < 5 else 1e-3)


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
