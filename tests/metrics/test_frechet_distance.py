"""Frechet distance of tables: closed form, torch-fidelity, blocks and shards, few rows, and honest intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metrics.tables import gaussian, numbers, real_side, stored, table

from irdm.metrics import EvaluationConfig
from irdm.metrics.frechet_distance import FrechetTarget, frechet_distances
from irdm.ops.gaussian import Moments

CONFIG = EvaluationConfig(resamples=16)


def judged(fake, train, val=None, held_out=(), config=CONFIG):
    return frechet_distances(table(fake), real_side(train, val or train, held_out), config)


def value(scores, name="a"):
    return scores["frechet_distance"].encoders[name].value


def test_diagonal_gaussians_have_a_closed_form():
    """Rows +-sqrt(s) e_i scaled so that the sample moments are exact: FD = |m|^2 + sum (sqrt s - sqrt r)^2."""
    dim = 4
    unit = torch.cat([torch.eye(dim), -torch.eye(dim)]).double() * ((2 * dim - 1) / 2) ** 0.5
    s, r, shift = torch.tensor([4.0, 1, 9, 0.25]), torch.tensor([1.0, 1, 4, 4]), torch.tensor([1.0, 0, -2, 0])
    target = FrechetTarget.of(Moments.of([unit * r.sqrt()]))
    expected = (shift.square().sum() + (s.sqrt() - r.sqrt()).square().sum()).item()
    sample = unit * s.sqrt() + shift
    assert target.distance(sample) == pytest.approx(expected)
    assert target.distances(sample, [torch.arange(8)]).tolist() == pytest.approx([expected])  # all axes are few


def test_agrees_with_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    real, fake = gaussian(300, 0)["a"] + 3, gaussian(200, 1, 0.3)["a"] + 3
    one, two = (
        {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (fake.double().numpy(), real.double().numpy())
    )
    expected = fidelity.fid_statistics_to_metric(one, two, verbose=False)["frechet_inception_distance"]
    found = judged({"inception": fake}, {"inception": real}, {"inception": gaussian(100, 2)["a"] + 3})
    assert value(found, "inception") == pytest.approx(expected, rel=1e-6)
    assert found["frechet_distance"].encoders["inception"].notes["name"] == "FID"


def test_moments_of_shards_add_up_in_any_order_and_survive_saving():
    rows = gaussian(101, 0)["a"] + 1e4
    whole = Moments.of([rows])
    parts = [Moments.of(part.split(7)) for part in rows.split([40, 1, 60])]
    for merged in (parts[0] + parts[1] + parts[2], parts[2] + (parts[0] + parts[1])):
        merged = Moments.load(merged.state_dict())
        assert merged.count == 101
        torch.testing.assert_close(merged.mean, whole.mean)
        torch.testing.assert_close(merged.covariance, torch.from_numpy(np.cov(rows.double().numpy().T)))
    with pytest.raises(ValueError, match="no rows"):
        Moments.of([])


def test_blocks_of_any_size_give_the_same_numbers_from_a_store_larger_than_memory(monkeypatch):
    train, fake, val = gaussian(400, 0), gaussian(150, 1, 0.2), gaussian(300, 2)
    one = judged(fake, train, val)
    monkeypatch.setattr("irdm.metrics.frechet_distance.BLOCK", 7)
    two = judged(stored(fake, 150), stored(train, 50), stored(val, 150), config=CONFIG)
    assert numbers(one) == pytest.approx(numbers(two), rel=1e-6)


def test_fresh_rows_are_as_far_as_the_control_and_the_ratio_is_one():
    train = gaussian(4000, 0)
    found = [judged(gaussian(300, seed), train, gaussian(900, seed + 50), ["b"]) for seed in range(1, 9)]
    ratios = [scores["frechet_ratio"] for scores in found]
    assert 0.75 < np.mean([ratio.mean.value for ratio in ratios]) < 1.35
    assert 0.75 < np.mean([ratio.mean.control for ratio in ratios]) < 1.35
    assert len({ratio.mean.control for ratio in ratios}) == 8, "the control is measured"
    assert all(ratio.mean.ci95[0] > 0 for ratio in ratios)
    assert ratios[0].label == "FDr2" and ratios[0].notes["rows"] == 300
    assert ratios[0].held_out.value == ratios[0].encoders["b"].value
    distance = found[0]["frechet_distance"]
    assert (distance.mean, distance.held_in, distance.notes["control_rows"]) == (None, None, 300)
    assert 0.3 < distance.encoders["a"].value / distance.encoders["a"].control < 3
    shifted = judged(gaussian(300, 1, 0.5), train, gaussian(900, 51))
    assert shifted["frechet_ratio"].mean.ci95[0] > 2


def test_the_ratio_stays_when_there_are_more_judged_images_than_held_out_ones():
    found = judged(gaussian(300, 1), gaussian(500, 0), gaussian(100, 51))
    assert found["frechet_ratio"].notes["rows"] == 50 and found["frechet_ratio"].notes["draws"] == 6
    assert found["frechet_distance"].notes["control_rows"] == 100


def test_the_interval_and_the_bias_are_those_of_many_draws():
    """400 rows: the sd over draws, and the excess over the value at 100 times as many rows."""
    train = gaussian(2000, 0)
    rows = [judged(gaussian(400, s, 0.5), train)["frechet_distance"].encoders["a"] for s in range(1, 31)]
    values = np.array([row.value for row in rows])
    errors = np.array([np.std(row.replicates, ddof=1) / np.sqrt(10) for row in rows])
    assert 0.7 < np.sqrt(np.mean(errors**2)) / values.std(ddof=1) < 1.5
    assert all(np.mean(row.replicates) == pytest.approx(row.value) for row in rows)
    limit = FrechetTarget.of(Moments.of([train["a"]])).distance(gaussian(40_000, 99)["a"])
    near = [judged(gaussian(400, seed), train)["frechet_distance"].encoders["a"] for seed in range(1, 31)]
    bias = np.mean([row.notes["bias"] for row in near])
    assert bias == pytest.approx(np.mean([row.value for row in near]) - limit, rel=0.3)
    assert all(row.ci95[0] >= 0 for row in near)


def test_fewer_rows_than_dimensions_are_right_and_said():
    """Two one-dimensional Gaussians embedded in 40 dimensions, 20 rows each."""
    x, y = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64) * 3 + 1
    axis = torch.nn.functional.normalize(torch.randn(40, dtype=torch.float64), dim=0)
    found = judged({"a": x[:, None] * axis}, {"a": y[:, None] * axis})["frechet_distance"].encoders["a"]
    assert found.value == pytest.approx(((x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2).item(), rel=1e-6)
    assert "20 generated rows for 40 dimensions and 20 reference rows" in found.notes["warning"]
    enough = judged(gaussian(50, 1), gaussian(60, 0))["frechet_distance"]
    assert enough.encoders["a"].notes["warning"] is None
