"""Sliced Wasserstein and MMD ratios: against POT and closed forms, on fresh, shifted and memorised rows."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch

from irdm.metrics import EvaluationConfig, Real, Sample
from irdm.metrics.base import stratified_rows, take
from irdm.metrics.mmd import FourierBank, mmd_ratio
from irdm.metrics.ratio import summarise
from irdm.metrics.sliced_wasserstein import SlicedBank, sw_ratio, sw_ratio_unseen
from irdm.ops.sampling import generator_for
from irdm.ops.sliced import unit_directions

CONFIG = EvaluationConfig(directions=128, rff_features=512, resamples=32, replicates=4)


def gaussian(n, rng, shift=0.0, dim=8, classes=4):
    labels = torch.arange(n) % classes
    rows = torch.randn(n, dim, generator=rng) * torch.linspace(2, 0.3, dim) + labels[:, None] + shift
    features = {"wide": rows, "narrow": rows[:, :4] * 3 + torch.randn(n, 4, generator=rng)}
    return Sample(torch.zeros(n, 1, 1, 1), labels, features)


def pick(sample, rows):
    return Sample(sample.images[rows], sample.labels[rows], take(sample.features, rows))


def world(seed=0, shift=0.0, n=100, replicates=4):
    """Generated rows, and the real side."""
    rng = torch.Generator().manual_seed(seed)
    real = Real(gaussian(4 * n, rng), gaussian(n, rng), gaussian(n, rng), ("narrow",))
    return gaussian(replicates * n, rng, shift), real


@pytest.mark.parametrize("rows", [40, 60, 53])
def test_sliced_distance_agrees_with_pot_for_any_sizes(rows):
    generated, real = world()
    x, y = generated.features["wide"][:rows].double(), real.val.features["wide"][:60].double()
    directions = unit_directions(8, 128, 3, torch.float64)
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.numpy(), p=2)
    bank = SlicedBank({"wide": y}, 128, 3)
    assert bank.distances({"wide": x}).item() == pytest.approx(expected, rel=1e-6)
    few = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions[:, :20].numpy(), p=2)
    assert bank.distances({"wide": x}, 20).item() == pytest.approx(few, rel=1e-6)


def test_a_shift_moves_sw_by_its_length_over_the_root_of_the_dimension():
    rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).double()
    shift = torch.zeros(16).double()
    shift[0] = 5.0
    distance = SlicedBank({"a": rows}, 8192, 0).distances({"a": rows + shift}).item()
    assert distance == pytest.approx(5 / math.sqrt(16), rel=0.03)  # E (u . s)^2 = |s|^2 / d


def test_a_large_common_mean_costs_no_digits():
    generated, real = world()
    small = SlicedBank(real.train.features, 64, 0).distances(generated.features)
    moved = [{name: rows + 4096 for name, rows in sample.features.items()} for sample in (real.train, generated)]
    torch.testing.assert_close(SlicedBank(moved[0], 64, 0).distances(moved[1]), small, rtol=1e-3, atol=0)


def test_fourier_features_approach_the_gaussian_kernel():
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(50, 3, generator=rng).double() + 1, torch.randn(70, 3, generator=rng).double()
    sigma = torch.pdist(y).median()

    def kernel(a, b):
        return torch.exp(-torch.cdist(a, b).square() / (2 * sigma**2)).mean()

    exact = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    estimate = FourierBank({"a": y}, 65536, 99999).distances({"a": x}).item()
    assert estimate == pytest.approx(exact.item(), rel=0.05)


@pytest.mark.parametrize("metric", [sw_ratio, sw_ratio_unseen, mmd_ratio])
def test_fresh_rows_score_one_and_shifted_rows_many(metric):
    generated, real = world()
    fresh = metric(generated, real, CONFIG)
    assert fresh["ci95"][0] < 1 < fresh["ci95"][1]
    assert set(fresh["per_encoder"]) == {"wide", "narrow"}
    assert fresh["held_out"] == fresh["per_encoder"]["narrow"]["value"]
    assert fresh["held_in"] == fresh["per_encoder"]["wide"]["value"]
    assert fresh["mean"] == pytest.approx((fresh["held_in"] + fresh["held_out"]) / 2)
    shifted = metric(world(shift=2.0)[0], real, CONFIG)
    assert shifted["ci95"][0] > 3


def test_the_real_control_is_about_one():
    controls = [sw_ratio(*world(seed, n=200), CONFIG)["real_control"] for seed in range(6)]
    assert 0.9 < np.mean(controls) < 1.1


def test_memorised_rows_score_below_one_against_train_but_not_against_unseen_rows():
    seen, unseen = [], []
    for seed in range(6):
        _, real = world(seed)
        copies = pick(real.train, torch.randperm(400, generator=generator_for("copies", seed)))
        seen.append(sw_ratio(copies, real, CONFIG)["mean"])
        unseen.append(sw_ratio_unseen(copies, real, CONFIG)["mean"])
    assert np.mean(seen) < 0.9
    assert 0.95 < np.mean(unseen) < 1.1


def test_mmd_with_matched_n_is_one_where_unmatched_n_is_not():
    matched, unmatched = [], []
    for seed in range(8):
        generated, real = world(seed)
        matched.append(mmd_ratio(generated, real, CONFIG)["mean"])
        bank = FourierBank(real.train.features, 512, 99999)
        unmatched.append((bank.distances(generated.features) / bank.distances(real.val.features)).mean().item())
    assert 0.8 < np.mean(matched) < 1.25
    assert np.mean(unmatched) < 0.6


@pytest.mark.parametrize("metric", [sw_ratio, sw_ratio_unseen])
def test_intervals_cover_one_for_real_draws(metric):
    config = CONFIG.model_copy(update={"directions": 32, "resamples": 20})
    hits = sum(low <= 1 <= high for low, high in (metric(*world(seed), config)["ci95"] for seed in range(100, 140)))
    assert hits >= 34  # 38 expected at 95%; fewer than 34 has probability 0.003


def test_one_replicate_borrows_the_spread_of_a_real_draw():
    generated, real = world(replicates=1)
    many = sw_ratio(world()[0], real, CONFIG)["ci95"]
    low, high = sw_ratio(generated, real, CONFIG)["ci95"]
    assert high / low > many[1] / many[0]


def test_a_group_without_encoders_is_null_and_zero_distances_are_refused():
    fake, draws = torch.full((2, 1), 2.0).double(), torch.ones(4, 1).double()
    summary = summarise(["a"], [], fake, draws, 0.5, denominator=draws[0])
    assert (summary["mean"], summary["held_in"], summary["held_out"]) == (2.0, 2.0, None)
    assert (summary["ci95"], summary["held_out_ci95"]) == ([2.0, 2.0], None)
    with pytest.raises(ValueError, match=r"Encoder 'a'.*distance 0"):
        summarise(["a"], [], fake, draws, 0.5, denominator=0 * draws[0])


@pytest.mark.parametrize("metric", [sw_ratio, sw_ratio_unseen, mmd_ratio])
def test_missing_encoders_and_nan_are_named(metric):
    generated, real = world()
    short = Sample(generated.images, generated.labels, {"wide": generated.features["wide"]})
    with pytest.raises(ValueError, match="Encoder 'narrow' has no features"):
        metric(short, real, CONFIG)
    generated.features["narrow"][3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"Encoder 'narrow': 1 of \d+ rows.*NaN"):
        metric(generated, real, CONFIG)


def test_few_constant_and_unmatched_rows_are_refused():
    rows = torch.randn(40, 3)
    with pytest.raises(ValueError, match=r"Encoder 'a': features \(4, 3\), expected at least 8 rows"):
        SlicedBank({"a": rows[:4]}, 8, 0)
    with pytest.raises(ValueError, match="Encoder 'a' gives every real image the same"):
        SlicedBank({"a": torch.ones(40, 3)}, 8, 0)
    with pytest.raises(ValueError, match="Encoder 'a': the median distance"):
        FourierBank({"a": torch.ones(40, 3)}, 8, 0)
    generated, real = world()
    with pytest.raises(ValueError, match="multiple of 100"):
        sw_ratio(pick(generated, torch.arange(150)), real, CONFIG)
    unmatched = Real(real.train, real.val, pick(real.test, torch.arange(50)), real.held_out)
    with pytest.raises(ValueError, match="100 val and 50 test rows"):
        sw_ratio(generated, unmatched, CONFIG)
    tiny = Real(pick(real.train, torch.arange(12)), real.val, real.test, real.held_out)
    with pytest.raises(ValueError, match="12 train rows"):
        sw_ratio_unseen(generated, tiny, CONFIG)


def test_stratified_rows_are_distinct_proportional_and_random():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100, generator=generator_for("order"))]
    first, second = (stratified_rows(labels, 50, generator_for("draw", seed)) for seed in (0, 1))
    assert len(first.unique()) == 50
    assert not torch.equal(first, second)
    assert labels[first].bincount().tolist() == [30, 15, 5]
    assert labels[stratified_rows(labels, 1000, generator_for("more"))].bincount().tolist() == [600, 300, 100]
    assert sorted(stratified_rows(labels, 100, generator_for("all")).tolist()) == list(range(100))
