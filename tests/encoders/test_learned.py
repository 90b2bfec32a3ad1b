"""The views that learn: what they cannot see by construction, and the lessons."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from irdm.encoders.learned import Assess, Classify, Content, Contrast, Damage, augment, cut, damage


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_content_sees_neither_brightness_nor_contrast():
    view, images = Content((3, 16, 16), 4, 8), F.interpolate(noise(8, 3, 2, 2), size=(16, 16))
    rows = view(images)
    assert (view(0.1 + 0.6 * images) - rows).norm() < 0.1 * (view(images.flip(1)) - rows).norm(), "colours it sees"


def test_damage_sees_no_brightness():
    view, images = Damage((3, 16, 16), 8), noise(8, 3, 16, 16)
    rows = view(images)
    assert (view(images + 0.2) - rows).norm() < 0.01 * (view(F.avg_pool2d(images, 3, 1, 1)) - rows).norm(), (
        "blur it sees"
    )


def test_an_augmentation_of_nothing_is_nothing():
    images = noise(2, 3, 9, 12)
    assert torch.allclose(augment(images, 0, 0, 0), images, atol=1e-5)
    assert not torch.allclose(augment(images), images, atol=0.1)


def test_damage_is_as_much_as_it_says():
    torch.manual_seed(0)
    images = noise(4000, 1, 6, 6)
    damaged, amounts = damage(images)
    assert amounts.shape == (4000, 5) and ((amounts >= 0) & (amounts < 1)).all()
    assert ((amounts == 0).float().mean(0) - 0.5).abs().max() < 0.04
    change = (damaged - images).square().mean((1, 2, 3)).sqrt()
    assert change[(amounts == 0).all(1)].max() < 1e-4, "a kernel of 0.05 pixels is none"
    only_noise = (amounts[:, :4] == 0).all(1) & (amounts[:, 4] > 0)
    assert torch.allclose(change[only_noise].mean(), (0.1 * amounts[only_noise, 4].square()).mean(), rtol=0.1)


def test_windows_are_cut_anywhere():
    image = torch.arange(100.0).view(1, 1, 10, 10)
    torch.manual_seed(0)
    windows = [cut(image, 8) for _ in range(60)]
    assert all(window.shape == (1, 1, 8, 8) for window in windows)
    assert {float(window[0, 0, 0, 0]) for window in windows} == {
        10.0 * row + column for row in range(3) for column in range(3)
    }
    assert torch.equal(cut(image, 10), image) and torch.equal(cut(image, 64), image)


@pytest.mark.parametrize("lesson", [Classify, Contrast, Assess])
def test_lessons_are_learned(lesson):
    """On stripes that lie or stand, a few steps bring the loss down."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    stripes = (torch.arange(8) % 4 < 2).float().expand(8, 8)
    images = torch.where(labels[:, None, None, None] == 0, stripes, stripes.T) * noise(64, 1, 1, 1)
    view = Damage((1, 8, 8), 8) if lesson is Assess else nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    taught = lesson(view)
    optimizer, losses = torch.optim.Adam(taught.parameters(), lr=3e-3), []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(taught(images, labels))
        losses[-1].backward()
        optimizer.step()
    first, last = torch.stack(losses[:10]).mean(), torch.stack(losses[-10:]).mean()
    assert last < 0.9 * first
