"""KID, CMMD, the Inception score and the extrapolated Frechet distance: against other codes and closed forms."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from metrics.tables import gaussian, numbers, real_side, stored, table
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from irdm.metrics import EvaluationConfig
from irdm.metrics.frechet_distance import FrechetTarget
from irdm.metrics.frechet_infinity import frechet_infinity
from irdm.metrics.inception_score import inception_score
from irdm.metrics.intervals import folds
from irdm.metrics.kernel_distance import MMD, cmmd, kernel_distances, quadratic
from irdm.metrics.tables import Table, published

CONFIG = EvaluationConfig()
METRICS = (kernel_distances, cmmd, inception_score, frechet_infinity)
ENCODERS = ("inception", "clip_336", "inception_logits", "inception")


def under(name: str, rows: int, seed: int, shift: float = 0.0, dim: int = 8):
    return gaussian(rows, seed, shift, dims=((name, dim),))


def value(scores, name):
    (score,) = scores.values()
    return score.encoders[name]


# --- KID -------------------------------------------------------------------------------------------------------------


def mmd2(x, y, kernel, unbiased):
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y).mean()
    if unbiased:
        return (
            (xx.sum() - xx.trace()) / (len(x) * (len(x) - 1))
            + (yy.sum() - yy.trace()) / (len(y) * (len(y) - 1))
            - 2 * xy
        )
    return xx.mean() + yy.mean() - 2 * xy


def test_kid_is_that_of_torch_fidelity_where_a_subset_is_everything():
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    fake, train = under("inception", 200, 1, 0.3), under("inception", 200, 0)
    expected = fidelity.kid_features_to_metric(
        fake["inception"].double(), train["inception"].double(), kid_subsets=1, kid_subset_size=200, verbose=False
    )["kernel_inception_distance_mean"]
    found = value(kernel_distances(table(fake), real_side(train, under("inception", 90, 2)), CONFIG), "inception")
    assert found.value == pytest.approx(expected, rel=1e-9) and found.notes["name"] == "KID"


def test_the_mean_over_random_subsets_tends_to_it():
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    fake, train = under("inception", 300, 1, 0.3), under("inception", 400, 0)
    subsets = fidelity.kid_features_to_metric(
        fake["inception"].double(), train["inception"].double(), kid_subsets=400, kid_subset_size=100, verbose=False
    )
    found = value(kernel_distances(table(fake), real_side(train, train), CONFIG), "inception").value
    error = subsets["kernel_inception_distance_std"] / math.sqrt(400)
    assert abs(found - subsets["kernel_inception_distance_mean"]) < 4 * error < 0.2 * found


def test_kid_of_unequal_sizes_its_replicates_and_its_control():
    fake, train, val = (
        under("dinov2_224", n, seed, shift) for n, seed, shift in ((120, 1, 0.5), (300, 0, 0), (90, 2, 0))
    )
    real = real_side(train, val)
    (score,) = kernel_distances(table(fake), real, CONFIG).values()
    found, x, y = (
        score.encoders["dinov2_224"],
        fake["dinov2_224"].double().numpy(),
        train["dinov2_224"].double().numpy(),
    )
    kernel = lambda a, b: polynomial_kernel(a, b, degree=3, coef0=1)  # noqa: E731
    expected = mmd2(x, y, kernel, True)
    assert found.value == pytest.approx(expected, rel=1e-9)
    fold = folds(120, CONFIG.seed).numpy()
    without = np.array([mmd2(x[fold != f], y, kernel, True) for f in range(10)])
    moved = (np.array(found.replicates) - expected) / (9 * (without.mean() - without))
    assert (
        moved == pytest.approx(moved[0], rel=1e-4) and 0.6 < moved[0] <= 1
    )  # what a jackknife counts twice is taken away
    assert found.control == pytest.approx(mmd2(val["dinov2_224"].double().numpy(), y, kernel, True), rel=1e-6)
    assert found.notes["name"] == "KD-DINOv2" and score.direction == "lower" and score.mean is None
    assert (score.notes["rows"], score.notes["real_rows"], score.notes["control_rows"]) == (120, 300, 90)
    assert found.p_real < 0.05


def test_the_degenerate_part_of_a_mean_over_pairs_is_found():
    """Of products of 200 standard normal rows of 30 it is all there is, and has the variance 30 times 2 / 200^2."""
    mmd = MMD(lambda x, y: x @ y.T, unbiased=True)
    found = []
    for seed in range(100):
        fold, rows = folds(200, seed), torch.randn(200, 30, generator=torch.Generator().manual_seed(seed))
        found.append(quadratic(mmd.within(rows, fold), torch.bincount(fold)))
    assert np.mean(found) == pytest.approx(60 / 200**2, rel=0.05)


def test_an_interval_of_kid_is_as_wide_as_kid_moves():
    train, found = under("inception", 1000, 0), []
    real = real_side(train, under("inception", 100, 1))
    for seed in range(1, 81):
        score = value(kernel_distances(table(under("inception", 200, 100 + seed)), real, CONFIG), "inception")
        found.append((score.value, score.ci95[1] - score.ci95[0]))
    values, widths = np.array(found).T
    assert 0.85 < widths.mean() / 2 / (1.96 * values.std(ddof=1)) < 1.4  # 1.6 if the degenerate part counts twice


def test_real_images_are_rarely_called_unlike_them_by_kid():
    """The chance of fresh rows is near uniform, and the interval holds the value of very many rows."""
    train, chances, held = under("inception", 500, 0), [], 0
    many = value(
        kernel_distances(table(under("inception", 6000, 99)), real_side(train, train), CONFIG), "inception"
    ).value
    for seed in range(1, 41):
        real = real_side(train, under("inception", 200, 1000 + seed))
        found = value(kernel_distances(table(under("inception", 200, seed)), real, CONFIG), "inception")
        chances.append(found.p_real)
        held += found.ci95[0] <= many <= found.ci95[1]
    assert sum(p < 0.05 for p in chances) <= 6 and 0.3 < np.mean(chances) < 0.7
    assert held >= 32  # of 40: nine in ten or more


# --- CMMD ------------------------------------------------------------------------------------------------------------


def test_cmmd_is_the_biased_mmd_of_unit_rows():
    fake, train, val = (
        under("clip_336", n, seed, shift) for n, seed, shift in ((120, 1, 0.5), (300, 0, 0), (90, 2, 0))
    )
    (score,) = cmmd(table(fake), real_side(train, val), CONFIG).values()
    x, y, z = (torch.nn.functional.normalize(rows["clip_336"].double(), dim=1).numpy() for rows in (fake, train, val))
    kernel = lambda a, b: rbf_kernel(a, b, gamma=1 / 200)  # noqa: E731
    assert score.mean.value == pytest.approx(1000 * mmd2(x, y, kernel, False), rel=1e-9)
    assert score.mean.control == pytest.approx(1000 * mmd2(z, y, kernel, False), rel=1e-6)
    assert score.label == "CMMD" and score.mean.ci95[0] >= 0


# --- Inception score -------------------------------------------------------------------------------------------------


def test_the_inception_score_is_that_of_torch_fidelity_of_the_same_parts():
    fidelity = pytest.importorskip("torch_fidelity.metric_isc")
    fake, val = under("inception_logits", 200, 1, dim=30), under("inception_logits", 100, 2, dim=30)
    (score,) = inception_score(table(fake), real_side(under("inception_logits", 99, 0, dim=30), val), CONFIG).values()
    order = folds(200, CONFIG.seed).argsort(stable=True)
    expected = fidelity.isc_features_to_metric(fake["inception_logits"][order], splits=10, shuffle=False)
    assert score.mean.value == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert np.std(score.mean.replicates) == pytest.approx(expected["inception_score_std"], rel=1e-9)
    assert score.notes["control_rows"] == 100 and score.direction == "higher" and score.label == "Inception score"


def test_sure_and_evenly_spread_classes_score_their_number():
    sure = {"inception_logits": 200 * torch.eye(4).repeat(100, 1)}
    (score,) = inception_score(table(sure), real_side(sure, {"inception_logits": torch.zeros(50, 4)}), CONFIG).values()
    assert score.mean.value == pytest.approx(4, rel=0.05) and score.mean.control == pytest.approx(1)


# --- FID at infinity -------------------------------------------------------------------------------------------------


def test_the_extrapolated_distance_is_that_of_the_distributions():
    """Two Gaussians whose Frechet distance is known; that of 400 rows is much too large."""
    dim, scale, shift = 16, 1.2, 0.2
    draw = lambda n, seed: torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    real = real_side({"inception": draw(100_000, 0)}, {"inception": draw(400, 1)})
    target, truth = FrechetTarget.of(real.moments["inception"]), dim * (shift**2 + (scale - 1) ** 2)
    samples = [scale * draw(400, seed) + shift for seed in range(2, 32)]
    plain = np.array([target.distance(rows) for rows in samples])
    found = [value(frechet_infinity(table({"inception": rows}), real, CONFIG), "inception") for rows in samples]
    values = np.array([one.value for one in found])
    error = values.std(ddof=1) / math.sqrt(len(found))
    assert abs(values.mean() - truth) < 3 * error + 0.01 < 0.3 * (plain.mean() - truth)
    assert sum(one.ci95[0] <= truth <= one.ci95[1] for one in found) >= 25
    errors = np.array([np.std(one.replicates, ddof=1) / math.sqrt(10) for one in found])
    assert 0.7 < np.sqrt(np.mean(errors**2)) / values.std(ddof=1) < 1.5
    assert found[0].notes["name"] == "FID-infinity" and found[0].notes["sizes"] == "1 x 400, 2 x 200, 3 x 133, 4 x 100"
    assert found[0].notes["warning"] is None and abs(found[0].control) < 0.15


def test_few_rows_for_the_dimensions_are_said():
    rows = {"inception": torch.randn(60, 20)}
    found = value(
        frechet_infinity(table(rows), real_side({"inception": torch.randn(90, 20)}, rows), CONFIG), "inception"
    )
    assert "15 rows for 20 dimensions" in found.notes["warning"]


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_they_cost_nothing_under_other_encoders(metric):
    rows = gaussian(60, 0)
    assert metric(table(rows), real_side(rows, rows), CONFIG) == {}


@pytest.mark.parametrize(("metric", "name"), list(zip(METRICS, ENCODERS, strict=True)))
def test_blocks_of_any_size_give_the_same_numbers_from_a_store_larger_than_memory(metric, name, monkeypatch):
    train, fake, val = (under(name, n, seed, shift) for n, seed, shift in ((150, 0, 0), (90, 1, 0.2), (80, 2, 0)))
    one = metric(table(fake), real_side(train, val), CONFIG)
    monkeypatch.setattr(sys.modules[metric.__module__], "BLOCK", 7)
    two = metric(stored_table(fake), real_side(stored_table(train), stored_table(val)), CONFIG)
    assert numbers(one) == pytest.approx(numbers(two), rel=1e-6)


def stored_table(features):
    return table(stored(features, 50))


def test_images_that_were_resized_have_another_name():
    rows = under("inception", 60, 0)
    plain, small = table(rows), Table(rows, table(rows).conditions, "resized to 32 x 32")
    assert published("FID", plain, real_side(plain, plain)) == "FID"
    for sides in ((small, plain, plain), (plain, small, plain), (plain, plain, small)):
        generated, train, val = sides
        assert published("FID", generated, real_side(train, val)) == "FID (images resized to 32 x 32)"
