"""Bins: a kind of images that is missing raises them, real draws do as often as stated; by definition, in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from metrics.tables import clusters, numbers, real_side, stored, table

from irdm.evaluation.witnesses import witnesses
from irdm.metrics import METRICS, EvaluationConfig
from irdm.metrics.bins import beyond, chi_square, standardised

DIMS = (("a", 8), ("b", 5), ("c", 6))


def drawn(count, seed, without=None):
    """Rows of ten classes that overlap, as many of each as chance makes; or of nine."""
    labels = torch.randint(10, (count,), generator=torch.Generator().manual_seed(seed))
    return clusters(labels if without is None else labels[labels != without], seed, apart=2.0, dims=DIMS)


def scored(judged, train=None, fresh=None, held_out=("c",)):
    real = real_side(drawn(800, 1) if train is None else train, drawn(800, 2) if fresh is None else fresh, held_out)
    return METRICS["bins"](table(judged), real, EvaluationConfig())


def test_a_class_of_ten_that_is_missing_is_seen_and_fresh_images_are_not_accused():
    fresh, dropped = scored(drawn(600, 3))["bins"], scored(drawn(600, 3, without=4))["bins"]
    assert fresh.mean.p_real > 0.05 and fresh.mean.value < 1.5 and fresh.mean.control == pytest.approx(1, abs=0.15)
    assert dropped.mean.p_real < 1e-4 and dropped.mean.value > 2 and dropped.mean.ci95[0] > dropped.mean.control
    assert dropped.held_out.value == dropped.encoders["c"].value and 0 < dropped.held_out.p_real < 0.05
    coverage = next(one for one in witnesses({"bins": dropped}) if one.name == "coverage")
    assert coverage.objects and coverage.evidence[0].encoder is None
    assert coverage.evidence[0].means == "kinds of images are missing, or too rare"


def test_it_is_pearsons_chi_square():
    kinds = torch.randint(5, (500,), generator=torch.Generator().manual_seed(0)) * 2  # every other bin is empty
    table = np.stack([np.bincount(side, minlength=10)[::2] for side in (kinds[:200], kinds[200:])])
    expected = scipy.stats.chi2_contingency(table, correction=False)
    rows = standardised(kinds)
    assert chi_square(rows[:200], rows[200:]) == pytest.approx(expected.statistic / expected.dof)
    assert beyond(expected.statistic / expected.dof, rows.T.cov()) == pytest.approx(expected.pvalue, rel=0.01)


def test_the_chance_of_a_weighted_sum_is_that_of_draws_of_it():
    weights = torch.tensor([3.0, 1.0, 1.0, 0.5, 0.1]).double()
    draws = torch.randn(200_000, 5, generator=torch.Generator().manual_seed(0)).square().double() @ weights
    for share in (0.05, 0.01, 0.001):
        assert beyond(draws.quantile(1 - share).item(), weights.diag()) == pytest.approx(share, rel=0.3)


def test_real_draws_have_the_chances_that_are_stated():
    chances = [
        scored(*(drawn(count, 3 * seed + side) for side, count in enumerate((150, 200, 200))))["bins"].mean.p_real
        for seed in range(10, 40)
    ]
    often = (np.array(chances) < 0.05).sum()
    assert often <= 5 and min(chances) > 1e-4  # of 30: more has probability 0.3%
    assert scipy.stats.kstest(chances, "uniform").pvalue > 0.001


def test_a_store_gives_the_same_numbers():
    sides = drawn(150, 3), drawn(200, 1), drawn(200, 2)
    one = scored(*sides)
    two = scored(*(stored(side, 4096) for side in sides))
    assert numbers(one) == pytest.approx(numbers(two))


def test_few_rows_have_few_bins_and_all_equal_rows_say_nothing():
    few = scored(drawn(24, 3), drawn(50, 1), drawn(50, 2))["bins"]
    assert few.notes["bins"] == 2 and 0 <= few.mean.p_real <= 1
    same = {name: torch.ones(60, dim) for name, dim in DIMS}
    alike = scored(same, same, same)["bins"].mean
    assert alike.value == 0 and alike.p_real == 1
