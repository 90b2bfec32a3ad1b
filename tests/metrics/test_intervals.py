"""Replicates and their intervals: against SciPy's Student, the textbook jackknife, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from irdm.metrics.intervals import bootstrap_interval, fold_means, folds, interval, jackknife, panel_score, student


@pytest.mark.parametrize("freedom", [3, 4, 5, 7, 9, 30, 1000])
def test_students_quantile(freedom):
    assert student(freedom + 1) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=0.01 if freedom < 5 else 1e-3)


def test_the_interval_of_replicates_is_that_of_scipy():
    rows = torch.randn(9, dtype=torch.float64) + 3
    expected = scipy.stats.t.interval(0.95, 8, loc=rows.mean().item(), scale=scipy.stats.sem(rows.numpy()))
    assert interval(rows) == pytest.approx(list(expected), rel=1e-4)


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


def test_a_panel_has_means_over_groups_and_an_interval_that_counts_correlation():
    a = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    alike = panel_score("x", "lower", {"a": a, "b": a}, ["b"], {"a": 1.0, "b": 3.0}, ["c"])
    opposed = panel_score("x", "lower", {"a": a, "b": -a}, [])
    assert alike["per_encoder"]["a"]["ci95"] == alike["ci95"] == alike["held_out_ci95"] == pytest.approx(interval(a))
    assert opposed["ci95"] == pytest.approx([0, 0])
    assert (alike["mean"], alike["held_in"], alike["real_control"], alike["missing"]) == (2.5, 2.5, 2.0, ["c"])
    assert (opposed["held_out"], opposed["held_out_ci95"]) == (None, None)
    assert alike["per_encoder"]["b"] | {"ci95": 0} == {
        "value": 2.5, "ci95": 0, "held_out": True, "replicates": a.tolist(), "real_control": 3.0,
    }  # fmt: skip
