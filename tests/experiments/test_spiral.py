"""The spiral: its measure against closed forms, and the order of the distances at a reduced size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irdm.data import SpiralConfig
from irdm.data.spiral import plane, spiral
from irdm.experiments import run_study
from irdm.experiments.spiral import DATA, STUDY, quality, row_name


def test_the_curve_and_its_plane():
    ends = spiral(torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(ends.norm(dim=1), torch.tensor([0.5, 1.0, 2.5]))
    torch.testing.assert_close(ends[1], torch.tensor([-1.0, 0.0]), atol=1e-6, rtol=0)  # half a turn
    basis = plane(DATA)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2), atol=1e-6, rtol=0)


def test_real_points_score_as_the_closed_form_says():
    """The distance to a nearly straight curve is |N(0, noise)|, whose median is 0.6745 noise."""
    dataset = SpiralConfig(points=20_000).build()
    numbers = quality(dataset.val.images.flatten(1))
    assert numbers["distance"] == pytest.approx(0.6745 * 0.05, rel=0.03)
    assert numbers["recall"] == 1
    assert dataset.image_shape == (64, 1, 1)
    assert not torch.equal(dataset.train.images, dataset.val.images)


def test_leaving_the_plane_is_told_apart():
    points = spiral(torch.linspace(0, 1, 500)) @ plane(DATA).T
    away = torch.linalg.svd(plane(DATA), full_matrices=True).U[:, 5]  # orthogonal to the plane
    for shift in (0.0, 0.7):
        numbers = quality(points + shift * away)
        assert numbers["off_plane"] == pytest.approx(shift, abs=1e-5)
        assert numbers["distance"] < 0.01 and numbers["recall"] == 1
    assert quality(points * torch.nan)["distance"] > 1e6


def test_nystrom_leads_and_moments_are_not_enough(tmp_path):
    """A quarter of the iterations at batch 32: enough for the order of the paper's Figure 3."""
    names = [row_name(distance, 32) for distance in ("Nyström", "SW", "Fréchet")]
    part = replace(
        STUDY,
        cells=lambda scale: {name: STUDY.cells(scale)[name] for name in names},
        figure=lambda table, folder: __import__("matplotlib.figure").figure.Figure(),
        claims=lambda table: [],
    )
    rows = run_study(part, tmp_path, seeds=(0,), scale=0.25, progress=lambda line: None)["rows"]
    distance = {name: rows[name]["distance"][0] for name in names}
    recall = {name: rows[name]["recall"][0] for name in names}
    assert distance[names[0]] < 0.6 * min(distance[names[1]], distance[names[2]])
    assert recall[names[0]] > 0.9 > 0.6 > recall[names[2]]
