import math

import pytest
import torch

from irdm.ops.embedding import (
    _lower_median,
    fourier_features,
    kernel_means,
    median_distance,
    nystrom_coefficients,
)
from irdm.ops.kernels import mean_kernel, squared_mmd
from irdm.ops.radial import Energy, Gaussian, InverseMultiquadric, Laplace
from irdm.ops.rows import squared_distances
from irdm.ops.sampling import generator_for

LADDER = (0.5, 1.0, 2.0, 4.0)
UNEVEN = (0.7, 1.0, 3.1)


def gammas_of(multiples, sigma=3.0):
    return tuple(1 / (2 * (multiple * sigma) ** 2) for multiple in multiples)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def ladder(multiples, sigma=3.0):
    return Gaussian(gammas_of(multiples, sigma))


KERNELS = {
    "one Gaussian": ladder((1.0,)),
    "Gaussians by squaring": ladder(LADDER),
    "uneven Gaussians": ladder(UNEVEN),
    "equal Gaussians": ladder((2.0, 2.0)),
    "one Laplace": Laplace(gammas_of((1.0,))),
    "Laplaces": Laplace(gammas_of(UNEVEN)),
    "one inverse multiquadric": InverseMultiquadric(gammas_of((1.0,))),
    "inverse multiquadrics": InverseMultiquadric(gammas_of(UNEVEN)),
    "energy": Energy(),
}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def formula(kernel, gamma, x, y):
    """k(x_i, y_j) as one writes it, with the gradient 0 where two points coincide."""
    squares = (x[:, None] - y).square().sum(dim=2)
    apart = torch.where(squares == 0, 1.0, squares).sqrt() * (squares != 0)
    sigma = (2 * gamma) ** -0.5
    return {
        Gaussian: torch.exp(-squares / (2 * sigma**2)),
        Laplace: torch.exp(-apart / sigma),
        InverseMultiquadric: (1 + squares / (2 * sigma**2)) ** -0.5,
        Energy: -apart,
    }[type(kernel)]


def value_and_gradient(fake, *args, **options):
    leaf = fake.detach().requires_grad_()
    value = squared_mmd(leaf, *args, **options)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def naive_mmd(fake, landmarks, alpha, kernel, constant=0.0, unbiased=False):
    """The equation of docs/method.md, left to autograd."""
    total = 0.0
    for gamma, weights in zip(kernel.gammas, alpha, strict=True):
        repulsion = formula(kernel, gamma, fake, fake)
        if unbiased:
            repulsion = repulsion[~torch.eye(len(fake), dtype=torch.bool)]
        total = total + repulsion.mean() - 2 * (formula(kernel, gamma, fake, landmarks) @ weights).mean()
    return total / len(kernel.gammas) + constant


@each_kernel
@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("unbiased", [False, True])
def test_value_and_gradient_are_those_of_autograd(kernel, block, unbiased):
    fake, landmarks = draw(45, 6).requires_grad_(), draw(19, 6, seed=1)
    alpha = draw(len(kernel.gammas), 19, seed=2)
    expected = naive_mmd(fake, landmarks, alpha, kernel, 0.3, unbiased)
    value = squared_mmd(fake, landmarks, alpha, kernel, 0.3, unbiased=unbiased, block=block)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, fake)[0], torch.autograd.grad(expected, fake)[0])


@each_kernel
def test_finite_differences(kernel):
    fake, landmarks, alpha = draw(7, 3).requires_grad_(), draw(4, 3, seed=1), draw(len(kernel.gammas), 4, seed=2)
    assert torch.autograd.gradcheck(lambda x: squared_mmd(x, landmarks, alpha, kernel, unbiased=True, block=4), fake)


@each_kernel
def test_coinciding_rows_do_not_move_each_other(kernel):
    """A kink has no derivative: 0 is taken, for duplicates in the batch and for a row on top of a landmark."""
    landmarks = torch.tensor([[0.5, -2.0], [1.0, 3.0]], dtype=torch.float64)
    fake, alpha = landmarks[:1].repeat(4, 1), torch.full((len(kernel.gammas), 2), 0.5, dtype=torch.float64)
    _, gradient = value_and_gradient(fake, landmarks, alpha, kernel, block=3)
    _, expected = value_and_gradient(fake[:1], landmarks[1:], alpha[:, 1:], kernel)
    torch.testing.assert_close(gradient, (expected / 4).expand(4, 2))


def test_unbiased_repulsion_needs_two_rows():
    with pytest.raises(ValueError, match="at least 2"):
        squared_mmd(draw(1, 3), draw(4, 3), draw(1, 4), ladder((1.0,)), unbiased=True)
    assert squared_mmd(draw(1, 3), draw(4, 3), torch.zeros(1, 4).double(), ladder((1.0,))).item() == 1


@each_kernel
def test_single_precision_agrees_with_double(kernel):
    kernel = type(kernel)([gamma / 7 for gamma in kernel.gammas]) if kernel.definite else kernel
    fake, landmarks = draw(200, 64), draw(60, 64, seed=1)
    alpha = draw(len(kernel.gammas), 60, seed=2) / 60
    value, gradient = value_and_gradient(fake, landmarks, alpha, kernel, block=128)
    single = value_and_gradient(fake.float(), landmarks.float(), alpha.float(), kernel, block=128)
    assert single[0].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-6)
    assert (single[1] - gradient).norm() < 1e-5 * gradient.norm()


def test_order_of_the_rows_does_not_matter():
    kernel = ladder(LADDER)
    fake, landmarks, alpha = draw(50, 6), draw(11, 6, seed=1), draw(4, 11, seed=2)
    value, gradient = value_and_gradient(fake, landmarks, alpha, kernel, block=8)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    shuffled = value_and_gradient(fake[order], landmarks, alpha, kernel, block=8)
    torch.testing.assert_close(shuffled[0], value)
    torch.testing.assert_close(shuffled[1], gradient[order])


def test_without_a_gradient_only_the_value_is_computed():
    fake, landmarks, alpha = draw(10, 3).requires_grad_(), draw(4, 3, seed=1), draw(1, 4, seed=2)
    with torch.no_grad():
        value = squared_mmd(fake, landmarks, alpha, Gaussian([0.1]))
    assert not value.requires_grad
    assert not squared_mmd(fake.detach(), landmarks, alpha, Gaussian([0.1])).requires_grad
    torch.testing.assert_close(value, naive_mmd(fake, landmarks, alpha, Gaussian([0.1])))


def test_a_second_derivative_is_refused_rather_than_wrong():
    fake, landmarks, alpha = draw(10, 3).requires_grad_(), draw(4, 3, seed=1), draw(1, 4, seed=2)
    gradient = torch.autograd.grad(squared_mmd(fake, landmarks, alpha, Gaussian([0.1])), fake, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradient.sum(), fake)


def test_the_gradient_scales_with_what_follows_and_survives_a_second_backward():
    fake, landmarks, alpha = draw(10, 3).requires_grad_(), draw(4, 3, seed=1), draw(1, 4, seed=2)
    value = squared_mmd(fake, landmarks, alpha, Gaussian([0.1]))
    once = torch.autograd.grad(value, fake, retain_graph=True)[0]
    twice = torch.autograd.grad(2 * value, fake)[0]
    torch.testing.assert_close(twice, 2 * once)


def test_far_rows_neither_overflow_nor_turn_nan():
    fake = torch.cat([draw(20, 5), 1e6 + draw(20, 5, seed=1)]).float()
    value, gradient = value_and_gradient(fake, draw(4, 5).float(), torch.ones(4, 4) / 4, ladder(LADDER))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@each_kernel
def test_mean_kernel_is_the_mean_of_the_matrix(kernel):
    x = draw(30, 4)
    expected = torch.stack([formula(kernel, gamma, x, x).mean() for gamma in kernel.gammas]).mean()
    torch.testing.assert_close(mean_kernel(x, kernel, block=7), expected)
    different = ~torch.eye(30, dtype=torch.bool)
    expected = torch.stack([formula(kernel, gamma, x, x)[different].mean() for gamma in kernel.gammas]).mean()
    torch.testing.assert_close(mean_kernel(x, kernel, unbiased=True, block=7), expected)


@pytest.mark.parametrize("rows", ["random", "ties", "equal", "in order", "not finite"])
def test_the_median_of_many_pairs_is_the_same_number(rows):
    n = 800  # 319,600 pairs: the median is found among the few between two quantiles
    x = torch.randn(n, 3, generator=generator_for("median", 0))
    x = {"ties": x.round(), "equal": torch.ones(n, 3), "in order": x.sort(0).values}.get(rows, x)
    if rows == "not finite":
        x[5] = torch.nan
    pairs = torch.cat([squared_distances(x[k : k + 1], x[k + 1 :])[0] for k in range(n - 1)])
    expected = pairs.median().sqrt().item()
    assert median_distance(x) == pytest.approx(expected, rel=1e-6, nan_ok=True)
    every = torch.rand(300_000, generator=generator_for("median", 1))
    assert _lower_median(every) == every.median().item() == every.sort().values[149_999].item()


def test_median_distance_is_the_median_over_pairs():
    x = draw(31, 4)
    pairs = torch.pdist(x)
    assert median_distance(x, block=8) == pytest.approx(pairs.median().item())
    with pytest.raises(ValueError, match="at least 2"):
        median_distance(x[:1])


@each_kernel
def test_coefficients_solve_the_system(kernel):
    landmarks, rows = draw(12, 3), draw(40, 3, seed=1)
    means = kernel_means(landmarks, rows.split(7), kernel)
    alpha, offset = nystrom_coefficients(landmarks, means, kernel, ridge=1e-9)
    for b, gamma in enumerate(kernel.gammas):
        torch.testing.assert_close(means[b], formula(kernel, gamma, landmarks, rows).mean(dim=1))
        seen = formula(kernel, gamma, landmarks, landmarks) @ alpha[b] + offset[b]
        torch.testing.assert_close(seen, means[b], atol=1e-6, rtol=1e-6)
    if kernel.definite:
        assert not offset.any()
    else:
        assert alpha.sum().item() == pytest.approx(1)


@each_kernel
def test_the_mean_embedding_of_the_landmarks_themselves(kernel):
    rows = draw(25, 3)
    alpha, offset = nystrom_coefficients(rows, kernel_means(rows, [rows], kernel), kernel, ridge=1e-12)
    torch.testing.assert_close(alpha, torch.full_like(alpha, 1 / 25), rtol=1e-3, atol=0)
    torch.testing.assert_close(offset, torch.zeros_like(offset), rtol=0, atol=1e-9)


@each_kernel
def test_coinciding_landmarks_share_their_coefficient(kernel):
    landmarks = draw(6, 3).repeat(2, 1)
    alpha, _ = nystrom_coefficients(landmarks, kernel_means(landmarks, [draw(40, 3, seed=1)], kernel), kernel)
    torch.testing.assert_close(alpha[:, :6], alpha[:, 6:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernel", [ladder((2.0, 0.7)), InverseMultiquadric(gammas_of((2.0, 0.7)))], ids=["g", "imq"])
def test_fourier_features_estimate_the_kernel(kernel):
    x, count = draw(8, 3), 20_000
    frequencies = kernel.frequencies(3, count, generator_for("w")).double()
    phases = 2 * math.pi * torch.rand(2 * count, generator=generator_for("p")).double()
    for b, features in enumerate(fourier_features(x, frequencies, phases, count).split(count, dim=1)):
        assert (features @ features.T - formula(kernel, kernel.gammas[b], x, x)).abs().max() < 0.03


@pytest.mark.parametrize("kernel", [Laplace([0.1]), Energy()])
def test_a_kernel_without_usable_frequencies_says_so(kernel):
    with pytest.raises(ValueError, match="no random frequencies"):
        kernel.frequencies(3, 5, generator_for(0))


@pytest.mark.parametrize("gammas", [[], [0.0], [1.0, math.inf], [math.nan]])
def test_bandwidths_must_be_positive_and_finite(gammas):
    with pytest.raises(ValueError, match="each positive and finite"):
        Gaussian(gammas)
