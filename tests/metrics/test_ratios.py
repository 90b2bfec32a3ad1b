"""Sliced Wasserstein and MMD ratios: POT and closed forms, the law of draws, exact sizes, honest intervals."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from metrics.tables import classed, clusters, gaussian, numbers, real_side, stored, table

from irdm.conditions import Classes, draw
from irdm.metrics import METRICS, EvaluationConfig, SlicedWassersteinRatio
from irdm.metrics.base import Pools, check_tables
from irdm.metrics.mmd import FourierTarget, mmd_ratio
from irdm.metrics.ratio import MOST_DRAWS
from irdm.metrics.sliced_wasserstein import SlicedTarget, sw_ratio, sw_ratio_unseen, whitened_ratio
from irdm.ops.sliced import unit_directions

CONFIG = EvaluationConfig(rows=128, directions=64, rff_features=256, resamples=32)
RATIOS = {metric.__name__: metric for metric in (sw_ratio, sw_ratio_unseen, whitened_ratio, mmd_ratio)}
LABELS = {"sw_ratio": "SW_r2", "sw_ratio_unseen": "SW_r2 unseen", "whitened_ratio": "SW_w2", "mmd_ratio": "MMDr2"}
TRAIN, FRESH = gaussian(500, 0), gaussian(300, 1)
REAL = real_side(TRAIN, FRESH, ["b"])
METRIC = pytest.mark.parametrize("name", list(RATIOS))


def score(name, generated, real=REAL, config=CONFIG):
    generated = table(generated) if isinstance(generated, dict) else generated
    return RATIOS[name](generated, real, config)[name]


def test_the_published_protocol_is_the_default():
    config = EvaluationConfig()
    assert (config.rows, config.directions, config.rff_features, config.rff_seed) == (16384, 1024, 4096, 99999)
    assert config.identity() == {} == config.model_copy(update={"micro_batch": 1, "quick_rows": 9}).identity()


@pytest.mark.parametrize("rows", [40, 60, 53])
def test_the_sliced_distance_is_that_of_pot_for_any_sizes(rows):
    x, y = gaussian(rows, 1)["a"].double(), gaussian(60, 2)["a"].double()
    directions = unit_directions(8, 300, 3, torch.float64)
    target = SlicedTarget.of("a", y, 300, 3)
    assert target.distance(x) == pytest.approx(
        ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.numpy(), p=2), rel=1e-6
    )
    draws = [torch.randperm(rows)[:size] for size in (20, rows - 7, 20)]
    assert target.distances(x, draws).tolist() == pytest.approx([target.distance(x[draw]) for draw in draws])


def test_a_shift_moves_sw_by_its_length_over_the_root_of_the_dimension():
    rows, shift = torch.randn(64, 16).double(), torch.zeros(16).double()
    shift[0] = 5.0
    distance = SlicedTarget.of("a", rows, 8192, 0).distance(rows + shift)
    assert distance == pytest.approx(5 / math.sqrt(16), rel=0.03)  # E (u . s)^2 = |s|^2 / d


def test_a_large_common_mean_costs_no_digits():
    x, y = gaussian(100, 1)["a"], gaussian(90, 2)["a"]
    small = SlicedTarget.of("a", y, 64, 0).distance(x)
    assert SlicedTarget.of("a", y + 4096, 64, 0).distance(x + 4096) == pytest.approx(small, rel=1e-3)


def test_fourier_features_approach_the_gaussian_kernel():
    x, y = torch.randn(50, 3).double() + 1, torch.randn(70, 3).double()
    sigma = torch.pdist(y).median()

    def kernel(a, b):
        return torch.exp(-torch.cdist(a, b).square() / (2 * sigma**2)).mean()

    exact = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    target = FourierTarget.of("a", y, 65536, 99999)
    assert target.distance(x) == pytest.approx(exact.item(), rel=0.05)
    draws = [torch.randperm(50)[:size] for size in (20, 50, 20)]
    assert target.distances(x, draws).tolist() == pytest.approx([target.distance(x[draw]) for draw in draws])


def test_a_full_draw_is_scored_as_pot_would():
    """Everything is taken when tables have exactly the rows: SW(gen, train) over the mean SW of the halves of val."""
    train, fresh, fake = gaussian(64, 0), gaussian(128, 1), gaussian(64, 2, 0.5)
    found = score("sw_ratio", fake, real_side(train, fresh), CONFIG.model_copy(update={"rows": 64}))
    for name in ("a", "b"):
        directions = unit_directions(fake[name].shape[1], 64, 0, torch.float64).numpy()

        def distance(rows, name=name, directions=directions):
            return ot.sliced_wasserstein_distance(
                rows.double().numpy(), train[name].double().numpy(), projections=directions, p=2
            )

        row = found.encoders[name]
        real = row.notes["real_distance"]
        assert row.value * real == pytest.approx(distance(fake[name]), rel=1e-5)
        first = 2 * real / (1 + row.control)  # the control is the second half over the first
        # Two disjoint halves: their mixture is the whole, whose distance is at most the root mean square of theirs.
        assert distance(fresh[name]) ** 2 <= np.mean(np.square([first, row.control * first])) * (1 + 1e-5)
    assert found.mean.value == pytest.approx(np.mean([row.value for row in found.encoders.values()]))


@METRIC
@pytest.mark.parametrize(("rows", "n"), [(700, 128), (300, 128), (128, 128), (127, 127), (40, 40), (9, 9)])
def test_draws_have_exactly_the_smallest_size(name, rows, n):
    found = score(name, gaussian(rows, 2))
    assert found.notes["rows"] == n and found.notes["draws"] == rows // n
    fresh = 500 if name == "sw_ratio_unseen" else 300
    assert found.notes["real_draws"] == min(fresh // n, MOST_DRAWS)
    assert 0.3 < found.mean.value < 3
    few = real_side(gaussian(60, 0), gaussian(100, 1))
    assert score(name, gaussian(rows, 2), few).notes["rows"] == min(rows, 30 if name == "sw_ratio_unseen" else 50)


@METRIC
def test_groups_labels_and_what_is_said(name):
    found = score(name, gaussian(128, 2))
    assert (found.label, found.direction) == (LABELS[name], "lower")
    assert found.held_in.value == found.encoders["a"].value and found.held_out.value == found.encoders["b"].value
    assert found.mean.value == pytest.approx((found.held_in.value + found.held_out.value) / 2)
    assert found.held_out.control == found.encoders["b"].control != 1
    assert len(found.mean.replicates) == 20
    assert np.mean(found.mean.replicates) == pytest.approx(found.mean.value)


@METRIC
def test_shifted_rows_score_many(name):
    assert score(name, gaussian(256, 2, 2.0)).mean.ci95[0] > 3


@METRIC
def test_tables_may_be_stores_and_come_in_the_order_of_their_classes(name):
    def ordered(tables):
        order = tables["a"][:, 0].argsort()
        return {encoder: rows[order] for encoder, rows in tables.items()}

    fake = gaussian(400, 2)
    disk = real_side(stored(TRAIN, 128), stored(FRESH, 300), ["b"])
    if name != "sw_ratio_unseen":
        assert numbers(score(name, stored(fake, 128), disk)) == pytest.approx(numbers(score(name, fake)), rel=1e-5)
    found = score(name, ordered(fake), real_side(ordered(TRAIN), ordered(FRESH)))
    low, high = found.mean.ci95
    assert low < 1 < high


def test_memorised_rows_score_below_one_against_train_but_not_against_unseen_rows():
    seen, unseen = [], []
    for seed in range(0, 36, 6):
        real = real_side(gaussian(400, seed), gaussian(400, seed + 1))
        copies = {name: rows[torch.randperm(400)[:200]] for name, rows in real.train.features.items()}
        seen.append(score("sw_ratio", copies, real).mean.value)
        unseen.append(score("sw_ratio_unseen", copies, real).mean.value)
    assert np.mean(seen) < 0.9
    assert 0.88 < np.mean(unseen) < 1.12


def test_the_target_itself_is_at_distance_zero_and_still_a_score():
    real = real_side(gaussian(64, 0), gaussian(128, 1))
    found = score("sw_ratio", real.train.features, real, CONFIG.model_copy(update={"rows": 64}))
    assert found.mean.value == pytest.approx(0, abs=1e-6) and len(found.mean.replicates) == 20
    assert (found.mean.ci95, found.mean.p_real) == ((0, 0), 1)


# --- the law of draws -------------------------------------------------------------------------------------------------

SHARES = {"balanced": torch.tensor([0, 1]), "90/10": torch.tensor([0] * 9 + [1])}


def world(shares, seed, train=600, val=400, rows=200):
    """Train, val and rows to be judged, all with the classes in proportion, most of whose spread is between classes."""
    labels = shares.repeat(1000)
    return real_side(classed(labels[:train], seed), classed(labels[:val], seed + 1)), classed(labels[:rows], seed + 2)


@pytest.mark.parametrize("n", [40, 128])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("shares", list(SHARES))
@pytest.mark.parametrize("name", ["sw_ratio", "mmd_ratio"])
def test_real_images_in_the_place_of_generated_ones_score_one(name, shares, labelled, n):
    """Over 12 redrawn worlds, the mean on a log scale is that of 1, within three standard errors and a tenth."""
    values = []
    for seed in range(0, 120, 10):
        config = CONFIG.model_copy(update={"rows": n, "resamples": 2, "seed": seed, "directions": 32})
        real, judged = world(SHARES[shares], seed)
        judged = judged if labelled else table({e: rows[torch.randperm(200)] for e, rows in judged.features.items()})
        found = score(name, judged, real, config)
        assert found.notes["law"] == ("stratified" if labelled else "random")
        values.append(math.log(found.mean.value))
    assert abs(np.mean(values)) < 0.1 + 3 * np.std(values, ddof=1) / np.sqrt(12)
    if labelled:  # without labels the shares of the classes move from draw to draw, on both sides
        assert np.std(values, ddof=1) < 0.6


def test_uniform_classes_on_90_10_data_are_scored_far_above_one():
    real, _ = world(SHARES["90/10"], 0, val=2500)
    for conditions in (True, False):
        judged = classed(SHARES["balanced"].repeat(100), 5)
        judged = judged if conditions else table(judged.features)
        found = score("sw_ratio", judged, real)
        assert found.notes["law"] == "random" and found.mean.value > 5 and found.mean.ci95[0] > 2


def test_the_law_is_stratified_only_for_the_classes_of_train_in_its_proportions():
    real, judged = world(SHARES["90/10"], 0)
    assert Pools.of(judged, real).law == "stratified"
    drawn = draw(real.train.conditions, 77, "any", 3)
    generated = table({e: rows[drawn] for e, rows in real.train.features.items()}, real.train.conditions[drawn])
    assert Pools.of(generated, real).law == "stratified", "as training and `irdm eval` draw conditions"
    renamed = table(judged.features, Classes(judged.conditions.labels, "xy"))
    skewed = table(judged.features, Classes(judged.conditions.labels.clamp(max=0), "ab"))
    for other in (renamed, skewed, table(judged.features)):
        assert Pools.of(other, real).law == "random"


def test_held_out_images_of_other_proportions_are_drawn_in_those_of_train():
    val = classed(torch.tensor([0, 1]).repeat(200), 1)
    real = real_side(classed(SHARES["90/10"].repeat(60), 0), val)
    pools = Pools.of(world(SHARES["90/10"], 0)[1], real)
    assert pools.law == "stratified" and len(pools.val) == 222
    assert val.conditions.labels[pools.val.rows].bincount().tolist() == [200, 22]


def test_a_pool_is_halved_and_drawn_in_proportion_without_repeating_a_row():
    pool = Pools.of(world(SHARES["90/10"], 0)[1], world(SHARES["90/10"], 0)[0]).val
    halves = pool.halves(0)
    assert not set(halves[0].rows.tolist()) & set(halves[1].rows.tolist())
    rows = halves[0].draws(50, 4, "x", 0)
    assert sorted(rows.flatten().tolist()) == sorted(halves[0].rows.tolist())
    for picked in rows:
        assert abs(pool.table.conditions.labels[picked].bincount()[1] - 5) <= 1


# --- intervals --------------------------------------------------------------------------------------------------------


@METRIC
@pytest.mark.parametrize("rows", [32, 17])
def test_intervals_cover_one_for_real_draws(name, rows):
    config = CONFIG.model_copy(update={"rows": 32, "directions": 32, "resamples": 20})
    hits = 0
    for seed in range(100, 160, 3):
        real = real_side(gaussian(200, seed), gaussian(200 if name == "sw_ratio_unseen" else 80, seed + 1))
        low, high = score(name, gaussian(rows, seed + 2), real, config).mean.ci95
        hits += low < 1 < high
    assert hits >= 16  # of 20, 19 expected at 95%; fewer than 16 has probability 0.003


def test_more_rows_give_a_narrower_interval():
    one, eight = (score("sw_ratio", gaussian(rows, 2, 0.3)).mean.ci95 for rows in (128, 1024))
    assert eight[1] / eight[0] < one[1] / one[0]


@pytest.mark.parametrize("name", ["sw_ratio", "mmd_ratio"])
def test_the_replicates_have_the_spread_of_many_draws(name):
    rows = [score(name, gaussian(128, seed, 0.4)).encoders["a"] for seed in range(10, 40)]
    error = np.sqrt(np.mean([np.var(row.replicates, ddof=1) / 20 for row in rows]))
    assert 0.7 < error / np.std([row.value for row in rows], ddof=1) < 1.6


# --- what cannot be scored --------------------------------------------------------------------------------------------


def test_bad_tables_are_named(monkeypatch):
    with pytest.raises(ValueError, match="got 128 judged, 128 target and 10 fresh real rows"):
        score("sw_ratio", gaussian(128, 2), real_side(TRAIN, gaussian(10, 1)))
    ones = {"a": torch.ones(50, 8)}
    with pytest.raises(ValueError, match="Encoder 'a' gives every real image the same"):
        score("sw_ratio", {"a": FRESH["a"]}, real_side(ones, {"a": FRESH["a"]}))
    with pytest.raises(ValueError, match="Encoder 'a': the median distance between real rows is 0"):
        score("mmd_ratio", {"a": FRESH["a"]}, real_side(ones, {"a": FRESH["a"]}))
    with monkeypatch.context() as patched, pytest.raises(ValueError, match=r"'a': fresh real rows lie at distance 0.0"):
        patched.setattr(SlicedTarget, "distance", lambda self, rows: 0.0)
        score("sw_ratio", FRESH)
    fake = gaussian(128, 2)
    for features, message in (
        ({name: rows[:7] for name, rows in fake.items()}, r"Encoder 'a': features \(7, 8\) of 7 judged images"),
        ({"a": fake["a"], "b": fake["a"]}, r"Encoder 'b': features \(128, 8\).*at least 8 of 5 numbers"),
        ({"a": fake["a"], "b": fake["b"][:40]}, r"Encoder 'b': features \(40, 5\) of 128 judged"),
        ({"a": fake["a"], "b": fake["b"] / 0}, "Encoder 'b': 128 of 128 judged rows of features hold NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            check_tables(table(features), REAL)


# --- the library object -----------------------------------------------------------------------------------------------


def test_the_library_object_is_the_metric():
    fake = gaussian(256, 2, 0.2)
    ratio = SlicedWassersteinRatio(directions=64, rows=128).fit(TRAIN, FRESH)
    expected = score("sw_ratio", fake, config=EvaluationConfig(rows=128, directions=64)).mean
    assert ratio(fake) == expected
    one = SlicedWassersteinRatio(directions=64, rows=128).fit(TRAIN["a"], FRESH["a"])(fake["a"])
    assert one.value == score("sw_ratio", fake, config=EvaluationConfig(rows=128, directions=64)).encoders["a"].value
    batches = SlicedWassersteinRatio(directions=64, rows=128)
    for name, rows in (("train", TRAIN), ("fresh", FRESH), ("generated", fake)):
        for start in range(0, len(rows["a"]), 100):
            batches.update({encoder: part[start : start + 100] for encoder, part in rows.items()}, name)
    assert batches.compute() == expected
    batches.reset()
    with pytest.raises(ValueError, match="no generated rows yet"):
        batches.compute()


def test_the_library_object_says_what_is_wrong(unchecked):
    ratio = SlicedWassersteinRatio().fit(TRAIN, FRESH)
    with pytest.raises(ValueError, match=r"Encoders \['b'\] are not in train, fresh and generated alike"):
        ratio({"a": TRAIN["a"]})
    with pytest.raises(ValueError, match="kind is 'real'; expected 'train', 'fresh' or 'generated'"):
        ratio.update(TRAIN, "real")


def test_every_metric_is_in_the_table():
    fake = classed(torch.arange(120) % 2, 3)
    real = real_side(classed(torch.arange(200) % 2, 0), classed(torch.arange(120) % 2, 1), ["b"])
    found = {}
    for metric in METRICS.values():
        found |= metric(fake, real, CONFIG)
    assert list(found) == [
        "sw_ratio", "sw_ratio_unseen", "whitened_ratio", "mmd_ratio", "frechet_distance", "frechet_ratio",
        "precision", "recall", "density", "coverage", "bins", "class_shares", "near_copies", "closeness",
        "authenticity", "nearest_neighbour_ratio", "vendi", "label_accuracy",
    ]  # fmt: skip
    for score_ in found.values():
        assert set(score_.encoders) == {"a", "b"} and score_.says.endswith(".")
        assert all(estimate.control is not None and estimate.ci95 for estimate in score_.encoders.values())


def test_scores_are_the_same_for_the_same_seed_and_others_for_another():
    fake = gaussian(200, 2)
    one, two, three = (score("sw_ratio", fake, config=CONFIG.model_copy(update={"seed": s})) for s in (0, 0, 1))
    assert one == two != three


def test_clusters_are_mostly_between_classes():
    """The premise of the tests of the law."""
    labels = torch.arange(400) % 2
    rows = clusters(labels, 0)["a"]
    within = torch.cat([rows[labels == c] - rows[labels == c].mean(0) for c in (0, 1)]).var(0).sum()
    assert rows.var(0).sum() > 10 * within
