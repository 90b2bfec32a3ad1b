"""Values and gradients of the authors' release on given inputs (tests/fixtures/README.md), and closed forms."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from irdm.distances import Drifting, ExactMMD, Frechet, NystromMMD, SlicedWasserstein
from irdm.distances.drifting import drifting_loss
from irdm.distances.inputs import join
from irdm.ops.embedding import fourier_features, kernel_means, median_distance, nystrom_coefficients
from irdm.ops.gaussian import frechet_distance, moments, symmetric_root
from irdm.ops.kernels import mean_kernel, squared_mmd
from irdm.ops.radial import Gaussian
from irdm.ops.sampling import generator_for
from irdm.ops.sliced import sliced_wasserstein2, sliced_wasserstein2_squared, unit_directions

FIXTURES = Path(__file__).parents[1] / "fixtures"
VALUES = json.loads((FIXTURES / "distances.json").read_text())
KERNEL = Gaussian([1 / (2 * VALUES["sigma"] ** 2)])


@pytest.fixture(scope="module")
def given():
    return {name: tensor.double() for name, tensor in load_file(FIXTURES / "distances.safetensors").items()}


def agrees(value, fake, name, gradient, rtol=1e-5):
    """The release works in float32: values agree to rtol, gradients to rtol of their norm."""
    assert value.item() == pytest.approx(VALUES[name], rel=rtol, abs=1e-6)
    found = torch.autograd.grad(value, fake)[0]
    assert (found - gradient).norm() < max(rtol, 1e-5) * gradient.norm()


def test_bandwidth_and_constant(given):
    assert median_distance(given["real"]) == pytest.approx(VALUES["sigma"], rel=1e-6)
    assert mean_kernel(given["real"], KERNEL).item() == pytest.approx(VALUES["k_rr"], rel=1e-6)


def test_nystrom_mmd(given):
    fake = given["gen"].requires_grad_()
    value = squared_mmd(fake, given["landmarks"], given["alpha"][None], KERNEL, VALUES["k_rr"])
    agrees(value, fake, "mmd_nystrom", given["grad_mmd_nystrom"])


def test_coefficients(given):
    means = kernel_means(given["landmarks"], [given["real"]], KERNEL)
    alpha = nystrom_coefficients(given["landmarks"], means, KERNEL, VALUES["jitter"])[0][0]
    torch.testing.assert_close(alpha, given["alpha"], rtol=1e-4, atol=1e-6)


def test_exact_mmd(given):
    fake = given["gen"].requires_grad_()
    real = given["real_batch"]
    value = squared_mmd(fake, real, torch.full((1, len(real)), 1 / len(real)).double(), KERNEL, VALUES["k_rr"])
    agrees(value, fake, "mmd_exact", given["grad_mmd_exact"])


def test_rff_mmd(given):
    fake = given["gen"].requires_grad_()
    features = fourier_features(fake, given["rff_W"], given["rff_b"], len(given["rff_b"]))
    agrees((features.mean(dim=0) - given["rff_mu_r"]).square().sum(), fake, "mmd_rff", given["grad_mmd_rff"])


def test_frechet(given):
    fake = given["gen"].requires_grad_()
    mean, covariance = moments(given["real"])
    value = frechet_distance(*moments(fake), mean, covariance, symmetric_root(covariance))
    # The release takes roots of eigenvalues down to 1e-3 in float32, which moves its own answer by this much.
    agrees(value, fake, "frechet", given["grad_frechet"], rtol=3e-3)
    assert value.item() == pytest.approx(VALUES["frechet"], rel=1e-4)


def test_sliced_wasserstein(given):
    fake = given["gen"].requires_grad_()
    value = sliced_wasserstein2_squared(fake, given["real_batch"], given["sw_directions"])
    agrees(value, fake, "sliced_wasserstein_p2", given["grad_sliced_wasserstein_p2"])
    metric = sliced_wasserstein2(fake, given["real"][: len(fake)], unit_directions(24, 1024, seed=0))
    assert metric.item() == pytest.approx(VALUES["sliced_wasserstein_p2_distance_seed0_m1024"], rel=1e-6)


def test_drifting(given):
    fake = given["drift_gen"].requires_grad_()
    agrees(drifting_loss(fake, given["drift_pos"], (0.2, 0.05, 0.02)), fake, "drifting", given["grad_drifting"])


def test_joint_rows(given):
    distance = NystromMMD().fit(given["real"], torch.zeros(300, 7), seed=0)
    joint = join(given["gen"], given["tau"], torch.zeros(24), distance.beta)
    torch.testing.assert_close(joint, given["joint"], rtol=1e-5, atol=1e-5)
    assert distance.beta.item() == pytest.approx(VALUES["beta"], rel=1e-6)


@pytest.mark.parametrize("bandwidths", [(1.0,), (0.5, 1.0, 2.0, 4.0)])
def test_nystrom_with_every_row_a_landmark_is_exact(given, bandwidths):
    options = {"bandwidths": bandwidths, "scale": 0.7}
    real, fake = given["real"], given["gen"].requires_grad_()
    nystrom = NystromMMD(**options).fit(real, seed=0)(fake)
    exact = ExactMMD(batch=len(real), **options).fit(real, seed=0)(fake)
    torch.testing.assert_close(nystrom, exact)
    torch.testing.assert_close(torch.autograd.grad(nystrom, fake)[0], torch.autograd.grad(exact, fake)[0])


def test_nystrom_is_zero_on_its_own_rows_and_few_landmarks_come_close(given):
    real = given["real"]
    assert NystromMMD().fit(real, seed=0)(real).item() == pytest.approx(0, abs=1e-12)
    exact = NystromMMD().fit(real, seed=0)(given["gen"]).item()
    few = NystromMMD(landmarks=100).fit(real, seed=0)(given["gen"]).item()
    assert few == pytest.approx(exact, rel=0.1)


def test_duplicated_rows_do_not_break_the_solve():
    real = torch.randn(10, 3, generator=generator_for(0)).repeat(20, 1)
    value = NystromMMD(landmarks=50).fit(real, seed=0)(real)
    assert value.item() == pytest.approx(0, abs=1e-5)


def test_two_points_in_closed_form():
    """Real rows at -1 and 1, all generated rows at x: L = 1 - (k(x,-1) + k(x,1)) + (1 + k(-1,1)) / 2; sigma = 2."""
    real = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    for x in (0.0, 0.5, 3.0):
        fake = torch.full((4, 1), x, dtype=torch.float64)
        expected = 1 - sum(math.exp(-((x - r) ** 2) / 8) for r in (-1, 1)) + (1 + math.exp(-4 / 8)) / 2
        assert NystromMMD().fit(real, seed=0)(fake).item() == pytest.approx(expected)
        assert Frechet().fit(real, seed=0)(fake).item() == pytest.approx(x**2 + 2, rel=1e-2)
        sliced = SlicedWasserstein().fit(real, seed=0)(fake).item()
        assert sliced == pytest.approx(x**2 + 1)


def test_two_gaussians_in_closed_form():
    """N(0, I) against N(m, v I) in d = 2; E k = (s2 / (s2 + v1 + v2))^(d/2) exp(-|m|^2 / (2 (s2 + v1 + v2)))."""
    n, shift, variance = 3000, 0.8, 2.0
    real = torch.randn(n, 2, generator=generator_for("real"), dtype=torch.float64)
    fake = torch.randn(n, 2, generator=generator_for("fake"), dtype=torch.float64) * math.sqrt(variance) + shift
    distance = NystromMMD(landmarks=200).fit(real, seed=0)
    s2, far = distance.sigma.item() ** 2, 2 * shift**2
    cross = s2 / (s2 + 1 + variance) * math.exp(-far / (2 * (s2 + 1 + variance)))
    expected = s2 / (s2 + 2 * variance) + s2 / (s2 + 2) - 2 * cross
    assert distance(fake).item() == pytest.approx(expected, rel=0.1)
    expected = far + 2 * (math.sqrt(variance) - 1) ** 2
    assert Frechet().fit(real, seed=0)(fake).item() == pytest.approx(expected, rel=0.1)


def test_frechet_with_fewer_rows_than_dimensions():
    real = torch.randn(200, 40, generator=generator_for("real"))
    distance = Frechet().fit(real, seed=0)
    fake = torch.randn(10, 40, generator=generator_for("fake")).requires_grad_()
    value = distance(fake)
    value.backward()
    assert 0 < value < 1e3
    assert torch.isfinite(fake.grad).all()
    few = Frechet().fit(real[:10], seed=0)  # a singular reference as well
    assert few(real[:10]).item() == pytest.approx(0, abs=1e-2)
    with pytest.raises(ValueError, match="at least 2"):
        distance(fake[:1])


def test_drifting_groups_must_divide_the_batch():
    real = torch.randn(50, 3, generator=generator_for(0))
    distance = Drifting(group_size=8).fit(real, seed=0)
    assert distance(real[:16]).isfinite()
    with pytest.raises(ValueError, match="multiple of group_size=8"):
        distance(real[:12])
