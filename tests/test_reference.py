"""References and floors: whatever the row order, and true to what fresh real rows score."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from irdm.data import DigitsConfig, Split
from irdm.distances import NystromMMDConfig
from irdm.reference import build_reference, held_out_floor

FLAT = {"pixels": nn.Flatten()}


def shuffled(split, seed):
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return Split(split.images[rows], split.labels[rows])


@pytest.mark.parametrize("rollout", [64, 1024])
def test_row_order_does_not_matter(rollout):
    digits = DigitsConfig().build()
    permuted = replace(digits, train=shuffled(digits.train, 1), val=shuffled(digits.val, 2))
    fake = torch.rand(50, 64)
    tau = torch.eye(10).repeat(5, 1)
    a, b = (
        build_reference(NystromMMDConfig(), FLAT, data, joint=True, rollout=rollout, seed=0)
        for data in (digits, permuted)
    )
    assert b.floors["pixels"] == pytest.approx(a.floors["pixels"], rel=1e-3)
    torch.testing.assert_close(b.distances["pixels"](fake, tau), a.distances["pixels"](fake, tau), rtol=1e-5, atol=1e-7)


def test_the_seed_decides_the_draws():
    digits = DigitsConfig().build()
    a, b, c = (
        build_reference(NystromMMDConfig(), FLAT, digits, joint=True, rollout=64, seed=seed).floors["pixels"]
        for seed in (0, 0, 1)
    )
    assert a == b != c


def test_the_extrapolated_floor_is_what_many_fresh_rows_score():
    torch.manual_seed(0)
    distance = NystromMMDConfig().build().fit(torch.randn(4000, 3), seed=0)
    one_class = torch.ones(200, 1)
    found = [
        held_out_floor(distance, torch.randn(200, 3), one_class, 2000, joint=False, seed=seed) for seed in range(40)
    ]
    truth = torch.tensor([distance(torch.randn(2000, 3)).item() for _ in range(20)])
    found = torch.tensor(found)
    error = (found.mean() - truth.mean()).abs()
    assert error < 3 * found.std() / 40**0.5 + 3 * truth.std() / 20**0.5
    raw = torch.tensor([distance(torch.randn(200, 3)[torch.randint(200, (2000,))]).item() for _ in range(20)])
    assert raw.mean() > 3 * truth.mean(), "drawing with replacement is far too high"
