"""The views that are written down: each statistic against what somebody else computes, and what each cannot see."""

import math

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import nn

from irdm.encoders.fixed import (
    EPS,
    Bands,
    Correlation,
    Gram,
    Palette,
    Parts,
    Patches,
    Pixels,
    Tone,
    Whitened,
    opponent,
    shrink,
    smooth,
    whitening,
)


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def patches():
    view = Patches((3, 20, 18))
    torch.manual_seed(0)
    view.cut(noise(50, 3, 20, 18))
    return view


def test_whitening_is_that_of_principal_components():
    rows = noise(400, 6) @ noise(6, 6, seed=1)
    whitened = Whitened(nn.Flatten(), 6, 4)
    whitened.fit(rows)
    found = whitened(rows[:, :, None, None]).sinh()
    expected = PCA(4, whiten=True, svd_solver="full").fit_transform(rows.double().numpy())[:, ::-1]
    assert np.allclose(found.abs(), np.abs(expected), atol=0.02), "up to signs and the floor of the variance"
    assert torch.allclose(found.T.cov(), torch.eye(4), atol=0.02)


def test_what_never_varies_is_not_blown_up():
    rows = torch.cat([noise(100, 2), torch.full((100, 1), 0.5)], 1)
    whitened = Whitened(nn.Flatten(), 3, 3)
    whitened.fit(rows)
    other = rows + torch.tensor([0.0, 0.0, 1e-3])
    assert (whitened(other[:, :, None, None]) - whitened(rows[:, :, None, None])).abs().max() < 0.11
    assert not whitened(rows[:, :, None, None])[:, 0].any()


def test_pixels_are_averaged_and_small_images_are_left():
    images = noise(2, 3, 16, 8)
    assert torch.allclose(Pixels(8)(images), images.unflatten(2, (8, 2)).mean(3).flatten(1))
    assert shrink(images, 16) is images


def test_opponent_colours_are_a_rotation():
    axes = opponent(3)[:, :, 0, 0]
    assert torch.allclose(axes @ axes.T, torch.eye(3), atol=1e-6)
    assert torch.allclose(axes[1:].sum(1), torch.zeros(2), atol=1e-6), "grey has no colour"
    assert torch.equal(opponent(2)[:, :, 0, 0], torch.eye(2))


@pytest.mark.parametrize("side", [4, 5, 8, 9])
def test_local_means_are_of_what_is_there(side):
    assert torch.allclose(smooth(torch.full((1, 1, side, side), 0.3), 7), torch.full((1, 1, side, side), 0.3))


def test_a_checkerboard_is_one_diagonal_band():
    board = 1 - 2 * ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float()
    rows = Bands(1)(0.5 + 0.1 * board[None, None]).view(10, 2, 2)
    nothing = math.log(EPS)
    assert torch.allclose(rows[0], torch.full((2, 2), 0.5)), "means of the cells"
    expected = torch.tensor([nothing, nothing, math.log(EPS + 0.2**2)] + 6 * [nothing])  # scale by scale
    assert torch.allclose(rows[1:, 0, 0], expected, atol=1e-4)


def test_bands_of_colours_are_those_of_a_convolution_in_groups():
    """Each colour by itself, by the same filters: to rounding, since one CPU's convolutions sum in another order."""
    view, images = Bands(3, scales=1), noise(5, 3, 12, 10)
    energy = F.conv2d(F.conv2d(images, view.colors), view.differences, groups=3).square()
    expected = (EPS + F.adaptive_avg_pool2d(energy, 2)).log().flatten(1)
    torch.testing.assert_close(view(images)[:, -expected.shape[1] :], expected, rtol=1e-6, atol=2e-6)


def test_patches_do_not_see_brightness(patches):
    images = noise(4, 3, 20, 18) / 2
    assert torch.allclose(patches(images), patches(images + 0.3), atol=1e-3)
    assert patches.filters.sum((1, 2, 3)).abs().max() < 1e-2 * patches.filters.abs().sum((1, 2, 3)).min()
    assert (patches(0.5 * images) < patches(images)).all()


@pytest.mark.parametrize("side", [4, 7, 16])
def test_parts_are_patches_of_the_responses_to_patches(side):
    view, images = Parts((3, side, side), first=4, count=6), noise(40, 3, side, side)
    torch.manual_seed(0)
    view.cut(images)
    size = view.filters.shape[2]
    maps = F.unfold(images, 3).mT @ view.first.filters.flatten(1).T  # by hand, [n, places, 4]
    maps = F.avg_pool2d(maps.abs().mT.unflatten(2, (side - 2, side - 2)), 2).log1p()
    answers = (F.unfold(maps, size).mT @ view.filters.flatten(1).T + view.offsets).abs().mT
    answers = answers.unflatten(2, (maps.shape[2] - size + 1, -1))
    rows = view(images)
    assert torch.allclose(rows, F.adaptive_avg_pool2d(answers, 2).flatten(1).log1p(), atol=1e-4)
    assert torch.allclose(view(images / 2), view(images / 2 + 0.3), atol=1e-3), "brightness drops out"
    assert not torch.allclose(view(images / 2), rows, atol=0.05)


def test_a_gram_matrix_is_of_the_responses_to_patches():
    view, images = Gram((3, 16, 18), count=4), noise(30, 3, 16, 18)
    torch.manual_seed(0)
    view.cut(images)
    answers = (F.unfold(images, 5).mT @ view.filters.flatten(1).T).double().numpy()  # by hand, [n, places, 4]
    energy = (answers**2).mean(1) + EPS
    rows = view(images)
    assert np.allclose(rows[:, :4], np.log(energy), atol=1e-4)
    for column, (a, b) in enumerate([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], 4):
        expected = (answers[..., a] * answers[..., b]).mean(1) / np.sqrt(energy[:, a] * energy[:, b])
        assert np.allclose(rows[:, column], expected, atol=1e-4)
    dim = view(0.2 + 0.7 * images)
    assert torch.allclose(dim[:, 4:], rows[:, 4:], atol=0.01), "neither contrast nor brightness"


def test_whitening_brings_all_that_varies_to_unit_variance():
    rows = (noise(500, 5) @ noise(5, 5, seed=1)).double()
    assert torch.allclose((rows @ whitening(rows, 1e-9)).T.cov(), torch.eye(5, dtype=torch.float64), atol=1e-4)


def test_correlations_are_those_of_a_signal_with_itself():
    image = noise(1, 2, 9, 11)
    rows = Correlation(2)(image)[0]
    x = (image - smooth(image, 3))[0].double().numpy()
    energy = (x**2).mean((1, 2)) + EPS
    assert np.allclose(rows[:2], np.log(energy), atol=1e-5)
    assert np.allclose(rows[2], (x[0] * x[1]).mean() / np.sqrt(energy[0] * energy[1]), atol=1e-5)
    index = 3
    for down, right in Correlation(2).steps:
        for a in range(2):
            for b in range(2):
                whole = scipy.signal.correlate2d(x[b], x[a])  # sums of products at every shift, centred at (8, 10)
                mean = whole[8 + down, 10 + right] / ((9 - down) * (11 - abs(right)))
                assert rows[index].item() == pytest.approx(mean / np.sqrt(energy[a] * energy[b]), abs=1e-5)
                index += 1
    assert index == len(rows)


def test_correlations_do_not_see_contrast_nor_brightness():
    images = noise(3, 3, 12, 12)
    plain, pale = (Correlation(3)(part)[:, 3:] for part in (images, 0.2 + 0.7 * images))
    assert torch.allclose(plain, pale, atol=0.01)


def test_tones_are_moments_and_shares_of_pixels():
    image = noise(1, 3, 30, 30).square()
    rows, x = Tone(3)(image)[0].double(), image[0].flatten(1).double().numpy()
    assert np.allclose(rows[:3], np.log(x.mean(1) + 0.02), atol=1e-5)
    assert np.allclose(rows[3:6], np.log(x.var(1)), atol=2e-3), "EPS is small beside it"
    assert np.allclose(rows[6:9], scipy.stats.skew(x, axis=1), atol=5e-3)
    shares = np.stack([(x > (level + 0.5) / 8).mean(1) for level in range(8)])
    assert np.abs(rows[9:33].view(8, 3).numpy() - shares).max() < 0.1, "a soft histogram, from the top"
    assert np.allclose(rows[33:], np.corrcoef(x)[[0, 0, 1], [1, 2, 2]], atol=5e-3)


def test_tone_does_not_see_place():
    images = noise(2, 1, 8, 8)
    moved = images.flatten(2)[:, :, torch.randperm(64, generator=torch.Generator().manual_seed(1))].view_as(images)
    assert torch.allclose(Tone(1)(images), Tone(1)(moved), atol=1e-5)


def test_a_palette_is_a_histogram_of_colours_that_is_soft():
    image = noise(2, 3, 9, 7, seed=5)
    shares = Palette(4).shares(image)
    pixels = image[1].flatten(1).double().numpy()
    grid = np.arange(4) / 3
    near = np.exp(-2 * ((pixels[:, None] - grid[:, None]) * 3) ** 2)
    near /= near.sum(1, keepdims=True)
    expected = np.einsum("rp,gp,bp->rgb", *near) / 63
    assert np.allclose(shares[1].reshape(4, 4, 4), expected, atol=1e-6) and shares.sum(1) == pytest.approx(1)
    hard, _ = np.histogramdd(np.round(pixels.T * 3), bins=[np.arange(5) - 0.5] * 3)
    assert np.corrcoef(expected.ravel(), hard.ravel())[0, 1] > 0.6
    assert Palette(4)(noise(2, 1, 40, 40)).shape == (2, 4) and Palette(4)(noise(2, 4, 5, 5)).shape == (2, 16)


def test_a_palette_sees_mixtures_that_no_channel_shows():
    red, green, black, yellow = (
        torch.tensor(c)[:, None].expand(3, 8) for c in ((1.0, 0, 0), (0, 1.0, 0), (0.0, 0, 0), (1.0, 1, 0))
    )
    two, other = torch.cat([red, green], 1), torch.cat([black, yellow], 1)
    assert torch.equal(two.sort(1).values, other.sort(1).values), "channel by channel they are alike"
    there, apart = (Palette().shares(x.reshape(1, 3, 4, 4)) for x in (two, other))
    assert (there - apart).abs().sum() > 1.5, "of at most 2"
    turned = two[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))].reshape(1, 3, 4, 4)
    assert torch.allclose(Palette()(turned), Palette()(two.reshape(1, 3, 4, 4)), atol=1e-5), "wherever a colour stands"
