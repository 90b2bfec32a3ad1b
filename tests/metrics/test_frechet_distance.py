"""Frechet distance of tables: closed form, torch-fidelity, blocks and shards, few rows, and honest intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metrics.tables import gaussian, numbers, stored

from irdm.metrics.frechet_distance import frechet_distances, table_moments
from irdm.ops.gaussian import Moments


def moments(tables):
    return {name: table_moments(name, rows) for name, rows in tables.items()}


def value(result, name="a"):
    return result["frechet_distance"]["per_encoder"][name]["value"]


def test_diagonal_gaussians_have_a_closed_form():
    """Rows +-sqrt(s) e_i scaled so that the sample moments are exact: FD = |m|^2 + sum (sqrt s - sqrt r)^2."""
    dim = 4
    unit = torch.cat([torch.eye(dim), -torch.eye(dim)]).double() * ((2 * dim - 1) / 2) ** 0.5
    s, r, shift = torch.tensor([4.0, 1, 9, 0.25]), torch.tensor([1.0, 1, 4, 4]), torch.tensor([1.0, 0, -2, 0])
    result = frechet_distances({"a": unit * s.sqrt() + shift}, moments({"a": unit * r.sqrt()}))
    assert value(result) == pytest.approx((shift.square().sum() + (s.sqrt() - r.sqrt()).square().sum()).item())


def test_agrees_with_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    real, fake = gaussian(300, 0)["a"] + 3, gaussian(200, 1, 0.3)["a"] + 3
    one, two = (
        {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (fake.double().numpy(), real.double().numpy())
    )
    expected = fidelity.fid_statistics_to_metric(one, two, verbose=False)["frechet_inception_distance"]
    result = frechet_distances({"inception": fake}, moments({"inception": real}))
    assert value(result, "inception") == pytest.approx(expected, rel=1e-6)
    assert result["frechet_distance"]["per_encoder"]["inception"]["name"] == "FID"


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


def test_blocks_of_any_size_give_the_same_numbers_from_a_store_larger_than_memory():
    real, fake, control = moments(gaussian(400, 0)), gaussian(150, 1, 0.2), gaussian(200, 2)
    one = frechet_distances(fake, real, control)
    two = frechet_distances(stored(fake, 7), real, stored(control, 7), block=7)
    assert numbers(one) == pytest.approx(numbers(two), rel=1e-9)


def test_fresh_rows_are_as_far_as_the_control_and_the_ratio_is_one():
    real = moments(gaussian(4000, 0))
    ratios = [
        frechet_distances(gaussian(300, seed), real, gaussian(300, seed + 50), held_out=["b"])["frechet_ratio"]
        for seed in range(1, 9)
    ]
    assert 0.75 < np.mean([ratio["mean"] for ratio in ratios]) < 1.35
    assert ratios[0]["name"] == "FDr2"
    assert ratios[0]["rows"] == {"generated": 300, "control": 300}
    assert ratios[0]["held_out"] == pytest.approx(ratios[0]["per_encoder"]["b"]["value"])
    shifted = frechet_distances(gaussian(300, 1, 0.5), real, gaussian(300, 51))
    assert shifted["frechet_ratio"]["ci95"][0] > 2
    assert shifted["frechet_distance"]["mean"] is None
    short = frechet_distances(gaussian(300, 1), real, gaussian(100, 51))
    assert "frechet_ratio" not in short
    assert short["frechet_distance"]["rows"] == {"generated": 300, "control": 100}


def test_the_interval_and_the_bias_are_those_of_many_draws():
    """400 rows: the sd over draws, and the excess over the value at 100 times as many rows."""
    real = moments(gaussian(2000, 0))
    results = [frechet_distances(gaussian(400, seed, 0.5), real) for seed in range(1, 31)]
    rows = [result["frechet_distance"]["per_encoder"]["a"] for result in results]
    values = np.array([row["value"] for row in rows])
    errors = np.array([np.std(row["replicates"], ddof=1) / np.sqrt(10) for row in rows])
    assert 0.7 < np.sqrt(np.mean(errors**2)) / values.std(ddof=1) < 1.5
    assert all(np.mean(row["replicates"]) == pytest.approx(row["value"]) for row in rows)
    limit = value(frechet_distances(gaussian(40_000, 99), real))
    near = [frechet_distances(gaussian(400, seed), real) for seed in range(1, 31)]
    bias = np.mean([result["frechet_distance"]["per_encoder"]["a"]["bias"] for result in near])
    assert bias == pytest.approx(np.mean([value(result) for result in near]) - limit, rel=0.3)


def test_fewer_rows_than_dimensions_are_right_and_said():
    """Two one-dimensional Gaussians embedded in 40 dimensions, 20 rows each."""
    x, y = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64) * 3 + 1
    axis = torch.nn.functional.normalize(torch.randn(40, dtype=torch.float64), dim=0)
    row = frechet_distances({"a": x[:, None] * axis}, moments({"a": y[:, None] * axis}))["frechet_distance"]
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert row["per_encoder"]["a"]["value"] == pytest.approx(expected.item(), rel=1e-6)
    assert "20 generated rows for 40 dimensions and 20 reference rows" in row["per_encoder"]["a"]["warning"]
    enough = frechet_distances(gaussian(50, 1), moments(gaussian(60, 0)))["frechet_distance"]
    assert enough["per_encoder"]["a"]["warning"] is None


def test_bad_tables_are_named():
    real, fake = moments(gaussian(60, 0)), gaussian(50, 1)
    with pytest.raises(ValueError, match=r"\['b'\] have no features; found \['a'\]"):
        frechet_distances({"a": fake["a"]}, real)
    partial = frechet_distances({"a": fake["a"]}, real, partial=True)["frechet_distance"]
    assert (partial["missing"], list(partial["per_encoder"])) == (["b"], ["a"])
    with pytest.raises(ValueError, match="have no features"):
        frechet_distances({"c": fake["a"]}, real, partial=True)
    with pytest.raises(ValueError, match=r"Encoder 'b': features \(50, 8\), expected \[n >= 8, 5\]"):
        frechet_distances({"a": fake["a"], "b": fake["a"]}, real)
    with pytest.raises(ValueError, match=r"Encoder 'a': features \(7, 8\)"):
        frechet_distances({name: rows[:7] for name, rows in fake.items()}, real)
    with pytest.raises(ValueError, match="'a': 50, 'b': 40"):
        frechet_distances({"a": fake["a"], "b": fake["b"][:40]}, real)
    fake["b"][3, 1] = torch.nan
    with pytest.raises(ValueError, match="Encoder 'b': 1 rows of features hold NaN"):
        frechet_distances(fake, real)
