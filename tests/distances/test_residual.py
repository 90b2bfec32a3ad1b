"""Joint distances of residuals: conditions beside what they do not tell of the features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from irdm.distances import FrechetConfig, NystromMMDConfig, SlicedWassersteinConfig
from irdm.distances.inputs import RIDGE, regression
from irdm.distributed import ALONE, Ranks
from irdm.ops.rows import share_of

CONFIGS = [NystromMMDConfig(landmarks=200), SlicedWassersteinConfig(), FrechetConfig()]


def pairs(n, seed=0, noise=0.5):
    """Features that a condition tells but for noise: [n, 6] and [n, 8], in float64."""
    rng = torch.Generator().manual_seed(seed)
    tau = torch.randn(n, 8, generator=rng, dtype=torch.float64)
    told = torch.randn(8, 6, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / 8**0.5
    return 3 + tau @ told + noise * torch.randn(n, 6, generator=rng, dtype=torch.float64), tau


def test_the_regression_is_ridge_regression():
    phi, tau = pairs(300)
    slope, intercept = regression(phi, tau, phi.mean(0), ALONE)
    penalty = RIDGE * tau.var(0, correction=0).mean().item() * len(tau)
    other = Ridge(alpha=penalty).fit(tau.numpy(), phi.numpy())
    np.testing.assert_allclose(slope.T, other.coef_, rtol=1e-9)
    np.testing.assert_allclose(intercept, other.intercept_, rtol=1e-9)


def test_conditions_that_never_vary_tell_nothing():
    phi, tau = pairs(50)
    slope, intercept = regression(phi, torch.ones_like(tau), phi.mean(0), ALONE)
    assert slope.abs().max() < 1e-6 and torch.allclose(intercept, phi.mean(0))


class Third(Ranks):
    """The first of three processes, whose sums are made here from the shares of all."""

    def __init__(self, phi, tau):
        super().__init__(0, 3)
        self.parts = [(phi[rows], tau[rows]) for rows in (share_of(len(phi), (p, 3)) for p in range(3))]
        self.told = iter(("total", "square", "cross"))
        self.mean = phi.mean(0)

    def sum(self, x):
        of = {
            "total": lambda p, t: t.sum(0),
            "square": lambda p, t: t.T @ t,
            "cross": lambda p, t: t.T @ (p - self.mean),
        }[next(self.told)]
        parts = [of(*part) for part in self.parts]
        torch.testing.assert_close(x, parts[0])
        return sum(parts)


def test_ranks_share_the_rows():
    phi, tau = pairs(101)
    whole, shared = (regression(phi, tau, phi.mean(0), ranks) for ranks in (ALONE, Third(phi, tau)))
    for one, other in zip(whole, shared, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_it_is_the_distance_of_residuals(config):
    phi, tau = pairs(300)
    fake, fake_tau = pairs(80, seed=1)
    fake = fake + 0.3
    slope, intercept = regression(phi, tau, phi.mean(0), ALONE)
    distance = type(config)(**config.model_dump() | {"residual": True}).build().fit(phi, tau, seed=3)
    plain = config.build().fit(phi - tau @ slope, tau, seed=3)
    torch.testing.assert_close(distance.sigma, plain.sigma)
    value, expected = distance(fake, fake_tau, step=2), plain(fake - fake_tau @ slope, fake_tau, step=2)
    torch.testing.assert_close(value, expected)
    assert distance.sigma < 0.7 * config.build().fit(phi, tau, seed=3).sigma, "what is left spreads less"
    assert torch.allclose(distance.center, intercept)


def test_its_gradient_is_that_of_finite_differences():
    phi, tau = pairs(200)
    fake, fake_tau = pairs(6, seed=1)
    distance = NystromMMDConfig(landmarks=50, residual=True).build().fit(phi, tau)
    fake.requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: distance(rows, fake_tau), (fake,))


def test_it_sees_wrong_pairs_among_few():
    """A quarter of 256 pairs exchanged conditions: ten times as many sd of right ones above them as plainly."""
    phi, tau = pairs(4000, noise=0.1)
    seen = {}
    for residual in (False, True):
        distance = NystromMMDConfig(landmarks=500, condition_bandwidth=2.0, residual=residual).build().fit(phi, tau)
        draws = [pairs(256, seed=seed, noise=0.1) for seed in range(1, 30)]
        right = torch.stack([distance(p, t) for p, t in draws])
        wrong = torch.stack([distance(p, torch.cat([t[:64].roll(1, 0), t[64:]])) for p, t in draws])
        seen[residual] = ((wrong.mean() - right.mean()) / right.std()).item()
    assert seen[True] > 10 * abs(seen[False]) and seen[True] > 10, seen


def test_without_conditions_there_is_nothing_to_regress():
    phi, fake = pairs(100)[0], pairs(30, seed=1)[0]
    plain, residual = (NystromMMDConfig(landmarks=50, residual=on).build().fit(phi) for on in (False, True))
    assert plain(fake) == residual(fake)


def test_a_reference_of_residuals_is_saved_and_loaded():
    phi, tau = pairs(100)
    fake, fake_tau = pairs(30, seed=1)
    fitted = NystromMMDConfig(landmarks=50, residual=True).build().fit(phi, tau)
    loaded = NystromMMDConfig(landmarks=50, residual=True).build()
    loaded.load_state_dict(fitted.state_dict())
    assert loaded(fake, fake_tau) == fitted(fake, fake_tau)
    with pytest.raises(ValueError, match="residual=True"):
        NystromMMDConfig(landmarks=50).build().load_state_dict(fitted.state_dict())
