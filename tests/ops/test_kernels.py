import math

import pytest
import torch

from irdm.ops.kernels import (
    fourier_features,
    gaussian_mmd,
    gaussian_mmd_and_gradient,
    kernel_means,
    mean_kernel,
    median_distance,
    nystrom_coefficients,
)
from irdm.ops.sampling import generator_for

LADDER = (0.5, 1.0, 2.0, 4.0)
UNEVEN = (0.7, 1.0, 3.1)


def gammas_of(multiples, sigma=3.0):
    return tuple(1 / (2 * (multiple * sigma) ** 2) for multiple in multiples)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def naive_mmd(fake, landmarks, alpha, gammas, constant=0.0):
    """The equation of docs/method.md, left to autograd."""
    total = 0.0
    for gamma, weights in zip(gammas, alpha, strict=True):
        repulsion = torch.exp(-gamma * (fake[:, None] - fake).square().sum(dim=2)).mean()
        attraction = torch.exp(-gamma * (fake[:, None] - landmarks).square().sum(dim=2)) @ weights
        total = total + repulsion - 2 * attraction.mean()
    return total / len(gammas) + constant


@pytest.mark.parametrize("multiples", [(1.0,), LADDER, UNEVEN, (2.0, 2.0)])
@pytest.mark.parametrize("block", [None, 7, 32])
def test_value_and_gradient_are_those_of_autograd(multiples, block):
    gammas = gammas_of(multiples)
    fake, landmarks = draw(45, 6).requires_grad_(), draw(19, 6, seed=1)
    alpha = draw(len(gammas), 19, seed=2)
    expected = naive_mmd(fake, landmarks, alpha, gammas, 0.3)
    value = gaussian_mmd(fake, landmarks, alpha, gammas, 0.3, block=block)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, fake)[0], torch.autograd.grad(expected, fake)[0])


@pytest.mark.parametrize("multiples", [(1.0,), LADDER])
def test_finite_differences(multiples):
    gammas = gammas_of(multiples)
    fake, landmarks, alpha = draw(9, 4).requires_grad_(), draw(5, 4, seed=1), draw(len(gammas), 5, seed=2)
    assert torch.autograd.gradcheck(lambda x: gaussian_mmd(x, landmarks, alpha, gammas, block=4), fake)


@pytest.mark.parametrize("multiples", [(1.0,), LADDER])
def test_single_precision_agrees_with_double(multiples):
    gammas = gammas_of(multiples, sigma=8.0)
    fake, landmarks, alpha = draw(300, 64), draw(100, 64, seed=1), draw(len(gammas), 100, seed=2) / 100
    value, gradient = gaussian_mmd_and_gradient(fake, landmarks, alpha, gammas, block=128)
    single = gaussian_mmd_and_gradient(fake.float(), landmarks.float(), alpha.float(), gammas, block=128)
    assert abs(single[0].item() - value.item()) < 1e-6
    assert (single[1] - gradient).norm() < 1e-5 * gradient.norm()


def test_order_of_the_rows_does_not_matter():
    gammas = gammas_of(LADDER)
    fake, landmarks, alpha = draw(50, 6), draw(11, 6, seed=1), draw(4, 11, seed=2)
    value, gradient = gaussian_mmd_and_gradient(fake, landmarks, alpha, gammas, block=8)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    shuffled = gaussian_mmd_and_gradient(fake[order], landmarks, alpha, gammas, block=8)
    torch.testing.assert_close(shuffled[0], value)
    torch.testing.assert_close(shuffled[1], gradient[order])


def test_without_a_gradient_only_the_value_is_computed():
    fake, landmarks, alpha = draw(10, 3), draw(4, 3, seed=1), draw(1, 4, seed=2)
    value, gradient = gaussian_mmd_and_gradient(fake, landmarks, alpha, (0.1,), gradient=False)
    assert gradient is None
    assert not gaussian_mmd(fake, landmarks, alpha, (0.1,)).requires_grad
    torch.testing.assert_close(value, naive_mmd(fake, landmarks, alpha, (0.1,)))


def test_the_gradient_scales_with_what_follows_and_survives_a_second_backward():
    fake, landmarks, alpha = draw(10, 3).requires_grad_(), draw(4, 3, seed=1), draw(1, 4, seed=2)
    value = gaussian_mmd(fake, landmarks, alpha, (0.1,))
    once = torch.autograd.grad(value, fake, retain_graph=True)[0]
    twice = torch.autograd.grad(2 * value, fake)[0]
    torch.testing.assert_close(twice, 2 * once)


def test_far_rows_neither_overflow_nor_turn_nan():
    fake = torch.cat([draw(20, 5), 1e6 + draw(20, 5, seed=1)]).float()
    value, gradient = gaussian_mmd_and_gradient(fake, draw(4, 5).float(), torch.ones(4, 4) / 4, gammas_of(LADDER))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


def test_mean_kernel_is_the_mean_of_the_matrix():
    x = draw(30, 4)
    expected = sum(torch.exp(-gamma * torch.cdist(x, x).square()).mean() for gamma in gammas_of(UNEVEN)) / 3
    torch.testing.assert_close(mean_kernel(x, gammas_of(UNEVEN), block=7), expected)


def test_median_distance_is_the_median_over_pairs():
    x = draw(31, 4)
    pairs = torch.pdist(x)
    assert median_distance(x, block=8) == pytest.approx(pairs.median().item())
    with pytest.raises(ValueError, match="at least 2"):
        median_distance(x[:1])


def test_coefficients_solve_the_system():
    landmarks, rows = draw(12, 3), draw(40, 3, seed=1)
    gammas = gammas_of((0.3, 1.0))
    means = kernel_means(landmarks, rows.split(7), gammas)
    alpha = nystrom_coefficients(landmarks, means, gammas)
    for b, gamma in enumerate(gammas):
        torch.testing.assert_close(means[b], torch.exp(-gamma * torch.cdist(landmarks, rows).square()).mean(dim=1))
        gram = torch.exp(-gamma * torch.cdist(landmarks, landmarks).square()) + 1e-6 * torch.eye(12)
        torch.testing.assert_close(gram @ alpha[b], means[b])


def test_coinciding_landmarks_share_their_coefficient():
    landmarks = draw(6, 3).repeat(2, 1)
    alpha = nystrom_coefficients(landmarks, kernel_means(landmarks, [draw(40, 3, seed=1)], (0.1,)), (0.1,))
    torch.testing.assert_close(alpha[0, :6], alpha[0, 6:], rtol=1e-4, atol=1e-6)


def test_fourier_features_estimate_the_kernel():
    x, count = draw(8, 3, dtype=torch.float32), 20_000
    frequencies = torch.randn(3, count, generator=generator_for("w")) / 2.0
    phases = 2 * math.pi * torch.rand(count, generator=generator_for("p"))
    features = fourier_features(x, frequencies, phases, count)
    assert (features @ features.T - torch.exp(-torch.cdist(x, x).square() / 8)).abs().max() < 0.03
