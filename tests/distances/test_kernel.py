"""The kernels and the two repulsions, through the distances that users configure."""

import pytest
import torch
from pydantic import ValidationError
from scipy.stats import energy_distance

from irdm.distances import RFFMMD, ExactMMD, NystromMMD, NystromMMDConfig, RFFMMDConfig
from irdm.ops.sampling import generator_for

KERNELS = ["gaussian", "laplace", "imq", "energy"]
MULTIPLES = {"energy": (1.0,)}
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def draw(n, d=4, shift=0.0, seed=0):
    return torch.randn(n, d, generator=generator_for("kernel", seed), dtype=torch.float64) + shift


def written_out(kernel, sigma, x, y):
    """The kernel matrix as the documentation of the field states it."""
    r = (x[:, None] - y).norm(dim=2)
    return {
        "gaussian": torch.exp(-(r**2) / (2 * sigma**2)),
        "laplace": torch.exp(-r / sigma),
        "imq": (1 + r**2 / (2 * sigma**2)) ** -0.5,
        "energy": -r,
    }[kernel]


@each_kernel
@pytest.mark.parametrize("distance", [NystromMMD, ExactMMD])
@pytest.mark.parametrize("repulsion", ["biased", "unbiased"])
def test_a_direct_double_sum(kernel, distance, repulsion):
    options = {"kernel": kernel, "repulsion": repulsion, "scale": 0.6, "bandwidths": MULTIPLES.get(kernel, (0.7, 1.5))}
    if distance is ExactMMD:
        options["batch"] = 50
    real, fake = draw(50), draw(20, shift=0.4, seed=1)
    value = distance(**options).fit(real, seed=0)(fake).item()
    expected = 0.0
    for multiple in options["bandwidths"]:
        sigma = multiple * 0.6 * torch.pdist(real).median()
        own = written_out(kernel, sigma, fake, fake)
        own = own.mean() if repulsion == "biased" else (own.sum() - own.trace()) / (20 * 19)
        cross, constant = written_out(kernel, sigma, fake, real).mean(), written_out(kernel, sigma, real, real).mean()
        expected += (own - 2 * cross + constant).item() / len(options["bandwidths"])
    assert value == pytest.approx(expected, rel=1e-9)


def test_energy_in_one_dimension_agrees_with_scipy():
    real, fake = draw(70, 1), 1.5 * draw(40, 1, shift=0.3, seed=1)
    expected = energy_distance(fake[:, 0].numpy(), real[:, 0].numpy()) ** 2
    value = NystromMMD(kernel="energy").fit(real, seed=0)(fake)
    assert value.item() == pytest.approx(expected, rel=1e-9)


@each_kernel
def test_few_landmarks_come_close(kernel):
    real, fake = draw(800), draw(100, shift=0.5, seed=1).requires_grad_()
    every, few = (NystromMMD(kernel=kernel, landmarks=count).fit(real, seed=0) for count in (800, 200))
    assert few(fake).item() == pytest.approx(every(fake).item(), rel=0.03)
    exact, near = (torch.autograd.grad(distance(fake), fake)[0] for distance in (every, few))
    assert (near - exact).norm() < 0.1 * exact.norm()
    assert few(real).item() == pytest.approx(0, abs=0.03 * few(fake).item())


@each_kernel
def test_few_landmarks_far_away(kernel):
    """Where the batch is far from the data only the mass of the embedding counts: an energy offset shows here."""
    real, fake = draw(800), draw(100, shift=50.0, seed=1)
    every, few = (NystromMMD(kernel=kernel, landmarks=count).fit(real, seed=0) for count in (800, 50))
    assert few(fake).item() == pytest.approx(every(fake).item(), rel=0.02)


@each_kernel
def test_duplicate_landmarks(kernel):
    """More landmarks than different rows: k-means centres coincide, and the answer is still that of the data."""
    real, fake = draw(10).repeat(20, 1), draw(30, shift=0.5, seed=1).requires_grad_()
    every, few = (NystromMMD(kernel=kernel, landmarks=count).fit(real, seed=0) for count in (200, 50))
    assert few(fake).item() == pytest.approx(every(fake).item(), rel=1e-3)
    assert torch.isfinite(torch.autograd.grad(few(fake), fake)[0]).all()


@pytest.mark.parametrize("landmarks", [4096, 5])
def test_energy_compares_features_that_are_all_equal(landmarks):
    """It has no bandwidth, so there is a right answer: 2 |x - c| against a point c."""
    real, fake = torch.full((20, 4), 3.0), torch.full((6, 4), 5.0).requires_grad_()
    value = NystromMMD(kernel="energy", landmarks=landmarks).fit(real, seed=0)(fake)
    value.backward()
    assert value.item() == pytest.approx(2 * 4, rel=1e-5)
    torch.testing.assert_close(fake.grad.sum(dim=0), torch.full((4,), 1.0))


@each_kernel
def test_joint_rows_and_single_precision(kernel):
    tau = torch.eye(3)[torch.arange(300) % 3]
    real, fake = draw(300) + 2 * tau.double() @ draw(3, seed=9), draw(50, shift=0.4, seed=1)
    distance = NystromMMD(kernel=kernel, landmarks=60).fit(real, tau, seed=0)
    single = NystromMMD(kernel=kernel, landmarks=60).fit(real.float(), tau, seed=0)
    value = distance(fake, tau[:50])
    assert single(fake.float(), tau[:50]).item() == pytest.approx(value.item(), rel=1e-3)
    assert distance(real, tau.roll(1, dims=1)) > 20 * distance(real, tau).abs()


def test_unbiased_repulsion_is_right_on_average():
    """Over many small batches the mean is the squared MMD of the populations; the biased one exceeds it."""
    real, pool = draw(400), draw(400, shift=0.3, seed=1)
    truth = NystromMMD().fit(real, seed=0)(pool).item()  # both populations as they are
    unbiased, biased = (NystromMMD(repulsion=kind).fit(real, seed=0) for kind in ("unbiased", "biased"))
    chosen = torch.randint(0, 400, (200, 4), generator=generator_for("batches"))
    values = torch.stack([unbiased(pool[rows]) for rows in chosen])
    error = values.std().item() / len(values) ** 0.5
    assert abs(values.mean().item() - truth) < 4 * error
    assert values.min() < 0
    assert biased(pool[chosen[0]]) > values[0]
    assert torch.stack([biased(pool[rows]) for rows in chosen]).mean() > truth + 8 * error


def test_random_features_of_the_inverse_multiquadric():
    real, fake = draw(300), draw(80, shift=0.5, seed=1).requires_grad_()
    exact = NystromMMD(kernel="imq").fit(real, seed=0)(fake)
    random = RFFMMD(kernel="imq", features=60_000).fit(real, seed=0)(fake)
    assert random.item() == pytest.approx(exact.item(), rel=0.05)
    expected, found = (torch.autograd.grad(value, fake)[0] for value in (exact, random))
    assert (found - expected).norm() < 0.15 * expected.norm()


def test_what_a_kernel_cannot_do_is_said():
    for kernel in ("laplace", "energy"):
        with pytest.raises(ValidationError, match="no useful gradient .* gaussian or imq"):
            RFFMMDConfig(kernel=kernel)
    with pytest.raises(ValidationError, match="no bandwidth; set this to 1"):
        NystromMMDConfig(kernel="energy", bandwidths=(0.5, 1.0))
