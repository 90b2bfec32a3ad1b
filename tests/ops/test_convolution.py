"""Convolution with frozen filters against torch's own, and its gradient against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from irdm.ops.convolution import Conv2d, conv2d

CASES = [(channels, side, padding) for channels in (1, 3, 8) for side in (1, 2, 3, 5) for padding in (0, 1)]


@pytest.mark.parametrize(("channels", "side", "padding"), CASES)
def test_it_is_torchs_and_so_is_its_gradient(channels, side, padding):
    torch.manual_seed(0)
    images, filters, bias = torch.rand(4, channels, 9, 12), torch.randn(6, channels, side, side), torch.randn(6)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    found = conv2d(ours, filters, bias, padding)
    expected = F.conv2d(theirs, filters, bias, padding=padding)
    assert torch.equal(found, expected)
    weights = torch.randn(found.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_its_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    images = torch.rand(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: conv2d(x, filters, padding=1).square(), images)
    assert conv2d(images, filters).grad_fn.name() == "_FrozenBackward"


def test_a_layer_learns_as_torchs_does():
    torch.manual_seed(0)
    ours, theirs = Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(1, 4, 3, padding=1)
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(5, 1, 8, 8, requires_grad=True)
    for layer in (ours, theirs):
        layer(images).square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)
    ours.requires_grad_(False)
    assert torch.equal(ours(images), theirs(images)) and ours(images).grad_fn.name() == "_FrozenBackward"
