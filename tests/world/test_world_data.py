"""The world as a dataset and as a metric."""

from dataclasses import replace

import pytest
import torch
from metrics.tables import real_side, table
from pydantic import ValidationError

from irdm.data import WorldConfig
from irdm.features import thumbnails
from irdm.metrics import EvaluationConfig
from irdm.metrics.world import world
from irdm.world import CATEGORIES, EMBEDDER, correct, read

DATA = WorldConfig(rows=2400).build()
CONFIG = EvaluationConfig()


def seen_as(split, images=None):
    features = {"a": torch.zeros(len(split), 2)}
    return replace(table(features, split.conditions), thumbnails=thumbnails(split.images if images is None else images))


REAL = real_side(seen_as(DATA.train), seen_as(DATA.val), [])


def test_the_dataset():
    spec = DATA.train.conditions.spec
    assert spec == DATA.val.conditions.spec and spec.embedder == EMBEDDER and spec.sources == CATEGORIES
    assert DATA.image_shape == (3, 16, 16) and (len(DATA.train), len(DATA.val)) == (1602, 798)
    assert {read(text).category for text in spec.examples} == set(CATEGORIES)
    strata, captions = DATA.train.conditions.strata, DATA.train.conditions.captions()
    assert [CATEGORIES[number] for number in strata.tolist()] == [read(text).category for text in captions]
    assert int(torch.bincount(strata).max() - torch.bincount(strata).min()) <= 1
    assert DATA.train.conditions.tau.shape == (1602, spec.width)
    assert correct(DATA.val.images, DATA.val.conditions.captions()).all()
    assert WorldConfig(rows=2400).build().fingerprint == DATA.fingerprint
    others = {WorldConfig(rows=60, **given).build().fingerprint for given in ({}, {"seed": 1}, {"side": "held-out"})}
    assert len(others) == 3


def test_a_category_that_is_named_twice_is_twice_as_frequent():
    twice = WorldConfig(rows=60, mix=("counting", "colors", "counting")).build()
    assert twice.train.conditions.spec.sources == ("counting", "colors")
    counting, colors = twice.train.conditions.strata.bincount().tolist()
    assert counting == pytest.approx(2 * colors, abs=1) and counting + colors == len(twice.train)
    with pytest.raises(ValidationError, match="There is no category colours; choose from single_object"):
        WorldConfig(mix=("colours",))


def test_the_metric_is_six_rates_and_their_unweighted_mean():
    judged = seen_as(DATA.train)
    scores = world(judged, REAL, CONFIG)
    assert list(scores) == ["world", *(f"world_{category}" for category in CATEGORIES)]
    assert all(score.mean.value == score.mean.control == score.mean.p_real == 1 for score in scores.values())
    mirrored = world(seen_as(DATA.train, DATA.train.images.flip(3)), REAL, CONFIG)
    position = mirrored["world_position"].mean
    assert position.value == pytest.approx(0.5, abs=0.1) and position.ci95[0] < position.value < position.ci95[1]
    assert mirrored["world"].mean.value == pytest.approx((5 + position.value) / 6) and position.p_real < 0.05
    assert len(mirrored["world"].mean.replicates) == 10


def test_the_metric_is_empty_for_other_images():
    judged = seen_as(DATA.val)
    few = seen_as(DATA.val.only(torch.arange(8)))
    other = judged.conditions.spec.model_copy(update={"embedder": "ngrams"}).restore(798, judged.conditions.state)
    for odd in (replace(judged, thumbnails=None), few, replace(judged, conditions=other)):
        assert world(odd, REAL, CONFIG) == {}
