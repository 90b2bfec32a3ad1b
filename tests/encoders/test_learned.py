"""The views that learn: what they cannot see by construction, and the lessons."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from irdm.encoders.learned import (
    Assess,
    Classify,
    Content,
    Contrast,
    Damage,
    Mixture,
    Unmix,
    augment,
    cut,
    damage,
    mix,
)


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


def test_a_mixture_is_an_image_with_a_part_of_another():
    torch.manual_seed(0)
    amount = mix(torch.zeros(4000, 3, 16, 12), torch.ones(4000, 3, 16, 12))  # of the other in each pixel
    assert ((amount >= 0) & (amount <= 1)).all() and (amount[:, :1] == amount).all(), "all channels alike"
    changed = (amount > 0).flatten(1).any(1)
    assert 0.7 < changed.float().mean() < 0.8, "a fifth stays whole, and some holes of ragged masks are all there is"
    blended = ((amount > 0) & (amount < 1)).flatten(1).any(1)
    assert 0.45 < (blended[changed]).float().mean() < 0.6, "half is blended, half cut out"
    reached = (amount[:, 0] > 0).float()
    assert reached.mean((1, 2)).max() < 0.6, "a rectangle is at most three quarters as wide and high"
    assert reached.mean(0).min() > 0.03 and reached.mean(0).max() < 0.3, "every place is reached, the middle most"
    images = noise(8, 3, 16, 12)
    assert torch.allclose(mix(images, images), images), "an image mixed with itself is itself"


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


def test_a_mixture_is_told_from_whole_images():
    """Of pictures that are dark or light throughout, the network tells those that are both."""
    torch.manual_seed(0)
    images = (torch.arange(256) % 2).float()[:, None, None, None].expand(-1, 1, 16, 16) * 0.8 + 0.2 * noise(
        256, 1, 1, 1
    )
    lesson = Unmix(Mixture((1, 16, 16), 8))
    optimizer, losses = torch.optim.Adam(lesson.parameters(), lr=3e-3), []
    for _ in range(200):
        rows = torch.randperm(256)[:64]
        optimizer.zero_grad()
        losses.append(lesson(images[rows], torch.zeros(64, dtype=torch.int64)))
        losses[-1].backward()
        optimizer.step()
    assert torch.stack(losses[-20:]).mean() < 0.5, "the squared error as a share of the variance; knowing nothing is 1"
    grey = torch.full((1, 1, 16, 16), 0.5)
    halves = torch.cat([torch.zeros(1, 1, 16, 8), torch.ones(1, 1, 16, 8)], 3)
    told = lesson.head(lesson.view(torch.cat([images[:2], grey, halves]))).mean(1)
    assert told[2] > 3 * told[:2].abs().max(), "what is neither dark nor light"
