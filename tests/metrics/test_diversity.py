"""Duplicates inside a set, and the Vendi score: by closed forms, another implementation, and on images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metrics.tables import gaussian, real_side, table
from sklearn.datasets import load_digits

from irdm.conditions import Unconditional
from irdm.metrics import EvaluationConfig, Table
from irdm.metrics.diversity import duplicates, vendi, vendi_score

CONFIG = EvaluationConfig()


def test_the_vendi_score_counts_unlike_images():
    assert vendi_score(torch.eye(7)) == pytest.approx(7)
    assert vendi_score(torch.ones(50, 3)) == pytest.approx(1)
    groups = torch.eye(4).repeat_interleave(torch.tensor([6, 6, 6, 2]), 0) * 3
    share = np.array([0.3, 0.3, 0.3, 0.1])
    assert vendi_score(groups) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert vendi_score(groups.repeat(1, 9)) == pytest.approx(vendi_score(groups)), "more dimensions than rows"


@pytest.mark.parametrize("shape", [(60, 8), (40, 200)])
def test_it_is_that_of_its_authors(shape):
    vendi_of = pytest.importorskip("vendi_score.vendi")
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double() + 0.5
    assert vendi_score(rows) == pytest.approx(vendi_of.score_dual(rows.numpy()), rel=1e-9)


def test_its_control_and_chances():
    side = real_side(gaussian(300, 0), gaussian(300, 1), ["b"])
    score = vendi(table(gaussian(200, 2)), side, CONFIG)["vendi"]
    assert score.mean is None and score.held_in is None and score.direction == "real"
    for name, found in score.encoders.items():
        assert found.value == pytest.approx(vendi_score(gaussian(200, 2)[name]))
        assert found.control == pytest.approx(found.value, rel=0.1) and found.p_real > 0.02
    low = {name: rows * torch.linspace(1, 0.05, rows.shape[1]) for name, rows in gaussian(200, 2).items()}
    for found in vendi(table(low), side, CONFIG)["vendi"].encoders.values():
        assert found.value < found.control and found.p_real < 1e-3


def pictures():
    images = np.unique(load_digits().images.astype(np.uint8) * 15, axis=0)
    order = np.random.default_rng(0).permutation(len(images))
    return torch.from_numpy(images[order])[:, None].split([600, 500, len(images) - 1100])


def judged(images):
    train, _, val = pictures()
    sides = [
        Table({"a": torch.zeros(len(part), 2)}, Unconditional(len(part)), thumbnails=part)
        for part in (images, train, val)
    ]
    return duplicates(sides[0], real_side(*sides[1:]), CONFIG)["duplicates"].mean


def test_duplicates_are_counted_exact_and_near():
    fresh = pictures()[1]
    clean = judged(fresh)
    assert clean.value < 0.03 and clean.p_real > 0.05 and clean.notes == {"exact": 0, "images": 500}
    assert clean.control < 0.03
    twice = judged(fresh[:250].repeat(2, 1, 1, 1))
    assert twice.value == pytest.approx(0.5, abs=0.03) and twice.p_real < 1e-9 and twice.notes["exact"] == 250
    ten = judged(fresh[:50].repeat(10, 1, 1, 1))
    assert ten.value == pytest.approx(0.9, abs=0.03) and ten.notes["exact"] == 450
    faded = torch.cat([fresh[:475], (fresh[:25] * 0.9).to(torch.uint8)])
    near = judged(faded)
    assert near.notes["exact"] == 0 and near.p_real < 0.01 and 0.02 < near.value < 0.08


def test_tables_without_thumbnails_have_no_duplicates():
    assert duplicates(table(gaussian(60, 2)), real_side(gaussian(99, 0), gaussian(99, 1)), CONFIG) == {}
