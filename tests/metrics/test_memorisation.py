"""Memorisation: copies, noisy copies, fresh rows and rows far away; by definition on whole matrices; in blocks."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from metrics.tables import gaussian, numbers, real_side, stored, table
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits, load_sample_images
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from irdm.conditions import Unconditional
from irdm.data.base import Dataset, TensorSplit
from irdm.encoders import LocalBatteryConfig
from irdm.evaluation import embed, real_of
from irdm.evaluation.defects import blur, contrast, jpeg, noise, rounded
from irdm.metrics import EvaluationConfig, Table
from irdm.metrics.copies import excess
from irdm.metrics.memorisation import _permuted, memorisation
from irdm.metrics.neighbours import nearest_neighbours
from irdm.metrics.score import Estimate
from irdm.ops.sampling import generator_for

TRAIN, FRESH = gaussian(600, 0), gaussian(200, 1)


def scores(fake, train=TRAIN, fresh=FRESH, held_out=()):
    return memorisation(table(fake), real_side(train, fresh, held_out), EvaluationConfig())


@pytest.mark.parametrize("chunk", [7, 64, 1024])
@pytest.mark.parametrize("k", [1, 4])
def test_neighbours_agree_with_scikit_learn_for_any_chunk(chunk, k):
    rng = torch.Generator().manual_seed(0)
    queries, references = torch.randn(50, 6, generator=rng) + 100, torch.randn(130, 6, generator=rng) + 100
    distance, index = nearest_neighbours(queries, references, k, chunk=chunk)
    expected, where = NearestNeighbors(n_neighbors=k).fit(references.numpy()).kneighbors(queries.numpy())
    assert index.tolist() == where.tolist()
    torch.testing.assert_close(distance, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)


def test_a_row_among_the_references_is_not_its_own_neighbour():
    rows = torch.randn(60, 5)
    expected = NearestNeighbors(n_neighbors=1).fit(rows.numpy()).kneighbors()
    distance, index = nearest_neighbours(rows[10:50], rows, own=torch.arange(10, 50), chunk=7)
    assert index.tolist() == expected[1][10:50].tolist()
    torch.testing.assert_close(distance, torch.from_numpy(expected[0][10:50]).float())
    with pytest.raises(ValueError, match="m at least 2"):
        nearest_neighbours(rows[:1], rows[:1], own=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(60, 5\) and \(0, 5\)"):
        nearest_neighbours(rows, rows[:0])
    with pytest.raises(ValueError, match="NaN"):
        nearest_neighbours(rows + torch.nan, rows)


def test_agrees_with_the_definitions():
    fake = {"a": torch.cat([gaussian(100, 2)["a"], TRAIN["a"][:10], TRAIN["a"][20:40] + 0.1])}
    found = scores(fake, {"a": TRAIN["a"]}, {"a": FRESH["a"]})
    to_train = pairwise_distances(fake["a"].double().numpy(), TRAIN["a"].double().numpy())
    real = pairwise_distances(FRESH["a"].double().numpy(), TRAIN["a"].double().numpy()).min(1)
    among = pairwise_distances(TRAIN["a"].double().numpy())
    np.fill_diagonal(among, np.inf)
    to_train[100:110][to_train[100:110] < 1e-6] = 0
    authentic = to_train.min(1) > among.min(1)[to_train.argmin(1)]
    expected = scipy.stats.mannwhitneyu(real, to_train.min(1)).statistic / (130 * 200)
    assert found["closeness"].mean.value == pytest.approx(expected, abs=1e-4)
    assert found["authenticity"].mean.value == pytest.approx(authentic.mean())
    usual = np.sort(real)[(len(real) - 1) // 2]
    median = np.sort(to_train.min(1))[(130 - 1) // 2]
    assert found["nearest_neighbour_ratio"].mean.value == pytest.approx(median / usual, rel=1e-5)
    sizes = [found["closeness"].notes[key] for key in ("rows", "train_rows", "fresh_rows")]
    assert sizes == [130, 600, 200]


def test_fresh_rows_look_fresh_and_copies_do_not():
    fresh = scores(gaussian(200, 3))
    closeness, authenticity = fresh["closeness"].mean, fresh["authenticity"].mean
    assert 0.42 < closeness.value < 0.58
    assert closeness.control != 0.5 and abs(closeness.control - 0.5) < 3 * closeness.control_error < 0.3
    assert min(fresh[name].mean.p_real for name in fresh) > 0.05
    assert abs(authenticity.value - authenticity.control) < 0.1
    assert fresh["nearest_neighbour_ratio"].mean.value == pytest.approx(1, abs=0.1)
    copies = scores({name: rows[:100] for name, rows in TRAIN.items()})
    values = {name: score.mean.value for name, score in copies.items()}
    assert values.pop("near_copies") > 0.95
    assert values == {"closeness": 1, "authenticity": 0, "nearest_neighbour_ratio": 0}
    assert max(score.mean.p_real for score in copies.values()) < 1e-9
    near = {name: rows[:200] + 0.05 * torch.randn(200, rows.shape[1]) for name, rows in TRAIN.items()}
    noisy = scores(near)
    assert noisy["closeness"].mean.ci95[0] > 0.9
    assert noisy["authenticity"].mean.ci95[1] < 0.1
    assert fresh["near_copies"].mean.value < 0.05 and fresh["near_copies"].mean.ci95[0] == 0
    mixed = {name: torch.cat([rows[:60], gaussian(140, 4)[name]]) for name, rows in TRAIN.items()}
    partly = scores(mixed)
    assert partly["closeness"].mean.ci95[0] > 0.55
    found = partly["near_copies"].mean
    assert found.value == pytest.approx(0.3, abs=0.02) and found.ci95[0] > 0.2 and found.p_real < 1e-9
    far = scores(gaussian(200, 3, 5.0))
    assert far["closeness"].mean.value < 0.01
    assert far["authenticity"].mean.value > 0.99
    assert far["nearest_neighbour_ratio"].mean.ci95[0] > 2


def test_no_interval_leaves_the_values_that_a_share_can_have():
    mixed = {name: torch.cat([rows[:1], gaussian(99, 4)[name]]) for name, rows in TRAIN.items()}
    for name, score in scores(mixed).items():
        for estimate in (score.mean, *score.encoders.values()):
            low, high = estimate.ci95
            assert 0 <= low <= high and (high <= 1 or name == "nearest_neighbour_ratio")
            assert "-" not in f"{low:.2f}{estimate.value:.2f}"


def test_zero_has_no_sign():
    found = Estimate(value=-0.0, control=-0.0, ci95=(-0.0, 0.5))
    assert "-" not in f"{found.value}{found.control}{found.ci95}" and Estimate(value=-1.0).value == -1


def test_a_store_larger_than_memory_gives_the_same_numbers(monkeypatch):
    fake = gaussian(90, 3)
    one = scores(fake, held_out=["b"])
    monkeypatch.setattr("irdm.metrics.neighbours.CHUNK", 41)
    two = scores(stored(fake, 41), stored(TRAIN, 50), stored(FRESH, 50), held_out=["b"])
    assert numbers(one) == pytest.approx(numbers(two), abs=1e-6)
    assert one["closeness"].held_in.value == one["closeness"].encoders["a"].value


def test_held_out_images_that_are_training_images_are_refused():
    with pytest.raises(ValueError, match="Encoder 'a': half of the fresh real images are also train images"):
        scores(gaussian(50, 3), TRAIN, {name: rows[:100] for name, rows in TRAIN.items()})


# --- near copies ------------------------------------------------------------------------------------------------------


def digits(seed=0):
    """train, judged and val of scikit-learn's digits, uint8 [n, 1, 8, 8]; none twice."""
    images = np.unique(load_digits().images.astype(np.uint8) * 15, axis=0)
    order = np.random.default_rng(seed).permutation(len(images))
    return torch.from_numpy(images[order])[:, None].split([697, 500, len(images) - 1197])


def crops(seed=0, train=1000, judged=1000, val=1000, side=32):
    """The same of colour crops of two photographs, half of them mirrored, of unlike brightness."""
    draw, photos, found = np.random.default_rng(seed), load_sample_images().images, []
    for _ in range(train + judged + val):
        photo = photos[draw.integers(2)]
        y, x = draw.integers(photo.shape[0] - side), draw.integers(photo.shape[1] - side)
        crop = photo[y : y + side, x : x + side] * draw.uniform(0.5, 1.0)
        found.append(np.round(crop[:, ::-1] if draw.random() < 0.5 else crop).astype(np.uint8).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(found)).split([train, judged, val])


def grey(seed=0):
    """The same of grey crops of 28 x 28."""
    return tuple(part.float().mean(1, keepdim=True)[..., 2:30, 2:30].round().to(torch.uint8) for part in crops(seed))


def saved(pictures, quality=75):
    found = []
    for picture in pictures.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(file, "JPEG", quality=quality)
        found.append(np.asarray(Image.open(file)).reshape(picture.shape))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def blurred(pictures, sigma=0.5):
    return torch.from_numpy(
        gaussian_filter(pictures.numpy().astype(float), (0, 0, sigma, sigma)).round().astype(np.uint8)
    )


CHANGES = {
    "saved as JPEG 75": saved,
    "5% darker": lambda pictures: (pictures * 0.95).round().to(torch.uint8),
    "blurred": blurred,
    "moved": lambda pictures: torch.cat([pictures[..., :1], pictures[..., :-1]], 3),
    "mirrored": lambda pictures: pictures.flip(3),
}


def near_copies(train, judged, val):
    """The score from thumbnails; the one encoder knows nothing."""
    sides = [
        Table({"noise": torch.randn(len(part), 4)}, Unconditional(len(part)), thumbnails=part)
        for part in (judged, train, val)
    ]
    return memorisation(sides[0], real_side(*sides[1:]), EvaluationConfig())["near_copies"]


@pytest.mark.parametrize("images", [digits, grey, crops], ids=["digits", "grey 28", "colour crops 32"])
def test_one_near_copy_in_twenty_is_found_and_fresh_images_are_not_accused(images):
    torch.manual_seed(0)
    train, judged, val = images()
    fresh = near_copies(train, judged, val)
    assert fresh.mean.p_real > 0.05 and fresh.mean.value < 0.03
    share = len(judged) // 20
    for name, change in CHANGES.items():
        mixed = torch.cat([change(train[-share:]), judged[share:]])
        found = near_copies(train, mixed, val)
        assert found.mean.p_real < 0.05 and found.encoders["thumbnails"].p_real < 0.005, name
        assert found.mean.notes["encoder"] == "thumbnails" and 0.015 < found.mean.value < 0.07, name
        shown = found.mean.notes["closest"]
        assert sum(row < share and near == len(train) - share + row for row, near, *_ in shown) >= 4, name


def squares(side=16):
    """The same of squares of two photographs that do not overlap."""
    found = [
        photo[y : y + side, x : x + side].transpose(2, 0, 1)
        for photo in load_sample_images().images
        for x in range(0, photo.shape[1] - side, side)
        for y in range(0, photo.shape[0] - side, side)
    ]
    order = np.random.default_rng(0).permutation(len(found))
    return torch.from_numpy(np.stack(found)[order])[:1750].split([1000, 250, 500])


DEFECTS = {
    "nothing": lambda pixels: pixels,
    "faded to 0.6": lambda pixels: contrast(pixels, 40, ()),
    "faded to 0.3": lambda pixels: contrast(pixels, 70, ()),
    "blurred": lambda pixels: blur(pixels, 1.5, ()),
    "noisy": lambda pixels: noise(pixels, 8, [generator_for("noisy", i) for i in range(len(pixels))]),
    "JPEG 30": lambda pixels: jpeg(pixels, 30, ()),
}


@pytest.mark.parametrize(
    ("images", "alone"), [(squares, {"faded to 0.3", "JPEG 30"}), (grey, {"faded to 0.3"}), (digits, set())]
)
def test_defects_of_real_images_are_not_taken_for_copies(images, alone):
    """Not by any encoder, though some would accuse the defects named if the pictures were not asked."""
    parts = [TensorSplit(rounded(part.float()), Unconditional(len(part)), "photographs") for part in images()]
    dataset = Dataset("photographs", parts[0], parts[2])
    battery = LocalBatteryConfig(held_in=("pixels", "pca", "bands", "patches", "tone"), held_out=("correlation",))
    battery = battery.fit(dataset)
    real, encoders = real_of(dataset, battery, EvaluationConfig()), dict(battery.encoders.items())
    for name, change in DEFECTS.items():
        changed = TensorSplit(rounded(change(parts[1].images * 255)), parts[1].conditions, name)
        judged = embed(changed, encoders)
        assert memorisation(judged, real, EvaluationConfig())["near_copies"].mean.p_real > 0.05, name
        if name in alone:
            unseen = replace(judged, thumbnails=None)
            assert memorisation(unseen, real, EvaluationConfig())["near_copies"].mean.p_real < 0.01, name


def test_the_test_is_hypergeometric_and_fresh_images_fail_it_as_often_as_stated():
    draw = torch.Generator().manual_seed(0)
    judged, fresh = torch.rand(300, generator=draw).double(), torch.rand(500, generator=draw).double()
    judged[:12] /= 100
    found = excess(judged, fresh)
    limit = torch.cat([judged, fresh]).sort().values[15]  # the third level: 2% of 800
    ours, theirs = (judged <= limit).sum().item(), (fresh <= limit).sum().item()
    _, expected = scipy.stats.fisher_exact([[ours, 300 - ours], [theirs, 500 - theirs]], "greater")
    assert found.chance == pytest.approx(5 * expected)
    wide = max(limit, fresh.sort().values[9])  # and 2% of 500
    ours, theirs = (judged <= wide).sum().item(), (fresh <= wide).sum().item()
    assert found.limit == wide and found.excess == pytest.approx(ours / 300 - theirs / 500)
    chances = np.array(
        [
            excess(torch.rand(400, generator=draw).double(), torch.rand(700, generator=draw).double()).chance
            for _ in range(500)
        ]
    )
    assert 0.005 < (chances < 0.05).mean() < 0.055 and (chances < 0.01).mean() < 0.016


def test_chances_are_those_of_rank_tests():
    judged, fresh = gaussian(150, 5, 0.1), gaussian(200, 6)
    found = scores(judged, fresh=fresh)
    for name in judged:
        ours, theirs = (nearest_neighbours(side[name], TRAIN[name])[0][:, 0].double() for side in (judged, fresh))
        expected = scipy.stats.mannwhitneyu(ours, theirs, use_continuity=False, method="asymptotic").pvalue
        assert found["closeness"].encoders[name].p_real == pytest.approx(expected, rel=0.02)
        above = np.array([(side > np.median(torch.cat([ours, theirs]))).sum() for side in (ours, theirs)])
        expected = scipy.stats.chi2_contingency([above, [150, 200] - above], correction=False).pvalue
        assert found["nearest_neighbour_ratio"].encoders[name].p_real == pytest.approx(expected, rel=0.05)


def test_fresh_images_are_accused_as_often_as_stated_under_two_encoders_that_see_nearly_the_same():
    draw = torch.Generator().manual_seed(0)
    chances = []
    for _ in range(400):
        ours, theirs = torch.randn(60, generator=draw).double(), torch.randn(90, generator=draw).double()
        seen = [(side + 0.3 * torch.randn(len(side), generator=draw)) for side in (ours, theirs)]
        chances.append(_permuted((ours + seen[0]) / 2, (theirs + seen[1]) / 2))
    assert 0.03 < (np.array(chances) < 0.05).mean() < 0.075


def test_a_set_of_nothing_but_near_copies_is_said_to_be_one():
    torch.manual_seed(0)
    train, _, val = digits()
    found = near_copies(train, saved(train[:500]), val).mean
    assert found.value > 0.85 and found.ci95[0] > 0.8 and found.p_real < 1e-20


def test_copies_of_crowded_places_are_not_excused_nor_lonely_images_accused():
    """A set of other classes, or of smooth images that all lie close together, is not a set of copies."""
    torch.manual_seed(0)
    wide, tight = torch.randn(400, 6), 0.05 * torch.randn(400, 6) + 8
    train, val = torch.cat([wide[:300], tight[:300]]), torch.cat([wide[300:], tight[300:]])
    crowded = scores({"a": 0.05 * torch.randn(150, 6) + 8}, {"a": train}, {"a": val})
    assert crowded["closeness"].mean.value > 0.7 and crowded["near_copies"].mean.p_real > 0.05


def test_what_is_remembered_of_the_real_side_is_of_that_side_alone():
    """The second set judged against one real side scores what it scores against a fresh copy; other val rows forget."""
    real = real_side(TRAIN, FRESH, ())
    memorisation(table(gaussian(150, 2)), real, EvaluationConfig())
    assert real.remembered and real.to(torch.device("cpu")).remembered is real.remembered
    judged = table(gaussian(150, 3))
    assert memorisation(judged, real, EvaluationConfig()) == memorisation(
        judged, real_side(TRAIN, FRESH, ()), EvaluationConfig()
    )
    assert not replace(real, val=real.val.only(torch.arange(100))).remembered
