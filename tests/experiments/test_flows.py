"""Flow matching and MeanFlow against Gaussians, whose velocity, path and mean velocity are known."""

from itertools import pairwise

import pytest
import torch
from spec import classes

from irdm.conditions import Classes
from irdm.data import DigitsConfig
from irdm.data.base import Dataset, TensorSplit
from irdm.experiments.flows import (
    LOSSES,
    TUNED,
    FlowConfig,
    FlowNetwork,
    FlowSampler,
    build_network,
    flow_matching_loss,
    integrate,
    mean_flow_target,
    schedule,
    steps_within,
    train_flow,
)
from irdm.generate import Drawn
from irdm.generators import ConvConfig, MLPConfig

SMALL = {"network": MLPConfig(width=32, depth=2), "steps": 3, "batch": 8}
KINDS = sorted(LOSSES)


class GaussianFlow:
    """Data N(mean, diag(std^2)): on a path z_t = (1 - t) mean + s_t xi with xi constant, s_t^2 = (1-t)^2 std^2 + t^2.

    (z_t is Gaussian, and in one dimension the flow is the increasing map between its laws.)
    """

    mean = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
    std = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)

    def spread(self, t):
        return (((1 - t) * self.std) ** 2 + t**2).sqrt()

    def move(self, z, t, r):
        """The point at time r of the path through z at time t."""
        t, r = t[:, None], r[:, None]
        return (1 - r) * self.mean + (z - (1 - t) * self.mean) / self.spread(t) * self.spread(r)

    def velocity(self, z, t, r, labels):
        """E[e - x | z_t = z], by the regression of a Gaussian on another."""
        t = t[:, None]
        return (t - (1 - t) * self.std**2) / self.spread(t) ** 2 * (z - (1 - t) * self.mean) - self.mean

    def mean_velocity(self, z, t, r, labels):
        return (z - self.move(z, t, r)) / (t - r)[:, None]


def points(count, dim=3):
    return torch.randn(count, dim, dtype=torch.float64), torch.zeros(count, dtype=torch.int64)


def times(count):
    """Pairs r < t."""
    pair = torch.rand(2, count, dtype=torch.float64).clamp(0.01, 0.99).sort(0).values
    return pair[1] + 0.005, pair[0]


def test_euler_converges_to_the_exact_path_at_first_order():
    flow, (z, labels) = GaussianFlow(), points(64)
    exact = flow.move(z, torch.ones(64).double(), torch.zeros(64).double())
    errors = [(integrate(flow.velocity, z, labels, n) - exact).norm().item() for n in (64, 128, 256, 512)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.1)
    assert errors[-1] < 0.01 * exact.norm()


def test_the_exact_velocity_samples_the_gaussian():
    flow, (z, labels) = GaussianFlow(), points(20000)
    samples = integrate(flow.velocity, z, labels, 200)
    assert torch.allclose(samples.mean(0), flow.mean, atol=0.05)
    assert torch.allclose(torch.cov(samples.T), torch.diag(flow.std**2), atol=0.12)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_mean_velocity_reaches_the_data_in_any_number_of_steps(steps):
    flow, (z, labels) = GaussianFlow(), points(64)
    integral = integrate(flow.velocity, z, labels, 2048)
    assert torch.allclose(integrate(flow.mean_velocity, z, labels, steps), integral, atol=5e-3)


def test_a_mean_velocity_is_its_own_target():
    flow, (z, labels) = GaussianFlow(), points(64)
    t, r = times(64)
    target = mean_flow_target(flow.mean_velocity, z, flow.velocity(z, t, r, labels), t, r, labels)
    assert torch.allclose(target, flow.mean_velocity(z, t, r, labels), atol=1e-9)
    wrong = mean_flow_target(flow.velocity, z, flow.velocity(z, t, r, labels), t, r, labels)
    assert not torch.allclose(wrong, flow.velocity(z, t, r, labels), atol=0.1), "the identity tells them apart"


def test_the_derivative_in_the_target_is_that_of_finite_differences():
    torch.manual_seed(1)
    network = FlowNetwork(
        FlowConfig(kind="mean-flow", network=MLPConfig(width=16, depth=3)), (1, 1, 3), classes(4)
    ).double()
    z, _ = points(32)
    v, labels = torch.randn_like(z), torch.arange(32) % 4
    t, r = times(32)
    t = t.clamp(min=0.1)
    r = torch.minimum(r, t)
    h = 1e-5
    with torch.no_grad():
        ahead, behind = (network(z + h * sign * v, t + h * sign, r, labels) for sign in (1, -1))
    expected = v - (t - r)[:, None] * (ahead - behind) / (2 * h)
    target = mean_flow_target(network, z, v, t, r, labels)
    assert torch.allclose(target, expected, rtol=1e-6, atol=1e-6)
    assert not target.requires_grad


def test_at_an_instant_the_target_is_the_velocity():
    network = FlowNetwork(
        FlowConfig(kind="mean-flow", network=MLPConfig(width=16, depth=2)), (1, 1, 3), classes(1)
    ).double()
    z, labels = points(8)
    t = torch.rand(8).double() + 0.1
    v = torch.randn_like(z)
    assert torch.equal(mean_flow_target(network, z, v, t, t, labels), v)


def test_flow_matching_is_least_at_the_exact_velocity():
    """At the minimum the loss is flat to first order: E over (x, e, t) of the slope is 0 in every direction."""
    flow, config = GaussianFlow(), FlowConfig()
    x = flow.mean + flow.std * torch.randn(200_000, 3).double()
    labels = torch.zeros(len(x), dtype=torch.int64)
    mean, std = flow.mean, flow.std
    for direction in (lambda z, t: torch.ones_like(z), lambda z, t: z, lambda z, t: z * t[:, None]):

        def loss(size, direction=direction):
            draw = torch.Generator().manual_seed(0)
            return flow_matching_loss(
                lambda z, t, r, y: flow.velocity(z, t, r, y) + size * direction(z, t), x, labels, config, draw
            )

        low, middle, high = loss(-0.5), loss(0.0), loss(0.5)
        assert min(low, high) > middle
        assert abs(high - low) < 0.05 * (low + high - 2 * middle)
    assert torch.equal(flow.mean, mean) and torch.equal(flow.std, std)


def gaussian_images(count=4000):
    """Two grey pixels, correlated, of one class; with the mean and covariance that they have."""
    covariance = torch.tensor([[0.0225, -0.0108], [-0.0108, 0.0144]])
    pixels = torch.tensor([0.4, 0.55]) + torch.randn(count, 2) @ torch.linalg.cholesky(covariance).T
    pixels = pixels.clamp(0, 1)
    part = TensorSplit(pixels.reshape(-1, 1, 1, 2), Classes(torch.zeros(count, dtype=torch.int64), ("point",)))
    return Dataset("gaussian", part, part), pixels.mean(0), torch.cov(pixels.T)


@pytest.mark.parametrize(
    ("kind", "evaluations", "off", "settings"),
    [
        ("flow-matching", 50, 0.3, {"steps": 600, "lr": 4e-3}),
        # A single step of flow matching would draw the mean alone, of no variance.
        ("mean-flow", 1, 0.5, {"steps": 800, "lr": 8e-3, "batch": 128, "time_mean": -0.7, "adaptive_power": 0.0}),
    ],
)
def test_training_learns_a_gaussian(kind, evaluations, off, settings):
    dataset, mean, covariance = gaussian_images()
    config = FlowConfig(kind=kind, network=MLPConfig(width=64, depth=3), frequencies=3, ema_decay=0.99).model_copy(
        update=settings
    )
    sampler = FlowSampler(train_flow(config, dataset), evaluations)
    images = Drawn(sampler, dataset.train.conditions, (1, 1, 2), 0).images.flatten(1)
    assert torch.allclose(images.mean(0), mean, atol=0.04)
    assert torch.allclose(torch.cov(images.T) / covariance, torch.ones(2, 2), atol=off)


def test_mean_flow_draws_the_digit_that_is_asked_for():
    data = DigitsConfig().build()
    config = FlowConfig(kind="mean-flow", network=MLPConfig(width=128), lr=4e-3, steps=150, batch=128, ema_decay=0.95)
    sampler = FlowSampler(train_flow(config, data), 1)
    labels = torch.arange(500) % 10
    images = Drawn(sampler, Classes(labels, data.train.conditions.names), (1, 8, 8), 0).images.flatten(1)
    known = data.train.conditions.labels
    centres = torch.stack([data.train.images[known == c].mean(0).flatten() for c in range(10)])
    assert (torch.cdist(images, centres).argmin(1) == labels).float().mean() > 0.85


CONV = ConvConfig(width=4, most=6, style=16, coarsest=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", [MLPConfig(width=16, depth=2), CONV])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_the_sampler_keeps_the_generators_contract(kind, body, shape):
    network = FlowNetwork(FlowConfig(kind=kind, network=body), shape, classes(4))
    sampler = FlowSampler(network, 3)
    noise, labels = torch.randn(9, *sampler.noise_shape), torch.arange(9) % 4
    images = sampler(noise, labels)
    assert images.shape == (9, *shape) and images.min() >= 0 and images.max() <= 1
    assert not torch.allclose(images, sampler(noise, (labels + 1) % 4)), "labels must matter"
    assert not torch.allclose(images, sampler(-noise, labels)), "noise must matter"
    assert torch.allclose(images[3:5], sampler(noise[3:5], labels[3:5]), atol=1e-6)


def test_a_convolutional_field_sees_every_pixel_at_every_size_and_has_a_derivative():
    torch.manual_seed(0)
    network = FlowNetwork(FlowConfig(kind="mean-flow", network=CONV), (1, 8, 8), classes(2)).double()
    z, labels, t = torch.randn(3, 64).double(), torch.zeros(3, dtype=torch.int64), torch.full((3,), 0.7).double()
    v, r, h = torch.randn(3, 64).double(), torch.full((3,), 0.2).double(), 1e-5
    with torch.no_grad():
        ahead, behind = (network(z + h * sign * v, t + h * sign, r, labels) for sign in (1, -1))
    expected = v - (t - r)[:, None] * (ahead - behind) / (2 * h)
    assert torch.allclose(mean_flow_target(network, z, v, t, r, labels), expected, rtol=1e-6, atol=1e-6)
    torch.nn.init.zeros_(network.body.embed_noise.weight)  # the maps alone
    with torch.no_grad():
        image = 1 - network(z, torch.ones(3).double(), r, labels) + z
        other = 1 - network(z.flip(1), torch.ones(3).double(), r, labels) + z.flip(1)
    assert not torch.allclose(image, other)


def test_one_step_shows_the_predicted_image():
    network = FlowNetwork(FlowConfig(network=MLPConfig(width=16, depth=2)), (1, 2, 2), classes(2))
    noise, labels = torch.randn(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64)
    drawn = FlowSampler(network, 1)(noise, labels)
    z = noise.flatten(1)
    one = torch.ones(5)
    assert torch.allclose(drawn.flatten(1), ((z - network(z, one, one, labels)) + 1) / 2, atol=1e-6)


def test_no_steps_are_refused():
    network = FlowNetwork(FlowConfig(network=MLPConfig(width=8, depth=1)), (1, 2, 2), classes(2))
    with pytest.raises(ValueError, match="in 0 steps, expected at least 1"):
        FlowSampler(network, 0)(torch.randn(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_decides_the_network_and_every_field_counts(kind):
    data = DigitsConfig().build()
    base = FlowConfig(kind=kind, **SMALL)

    def weights(**fields):
        network = train_flow(base.model_copy(update=fields), data)
        return torch.cat([p.flatten() for p in network.parameters()])

    before = torch.random.get_rng_state()
    first = weights()
    assert torch.equal(first, weights())
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is left alone"
    changed = {
        "network": MLPConfig(width=16, depth=2),
        "frequencies": 2,
        "steps": 4,
        "batch": 9,
        "lr": 3e-3,
        "weight_decay": 0.1,
        "ema_decay": 0.05,
    }
    changed |= {"time_mean": 0.5, "time_std": 0.5, "seed": 1}
    its_own = {"instant_share": 0.0, "adaptive_power": 0.5}  # MeanFlow's
    changed |= its_own if kind == "mean-flow" else {}
    assert {"kind", *changed, *its_own} == set(FlowConfig.model_fields)
    for field, value in changed.items():
        other = weights(**{field: value})
        assert other.shape != first.shape or not torch.equal(other, first), field


def test_training_returns_the_frozen_average_and_tells_its_progress():
    data, lines = DigitsConfig().build(), []
    config = FlowConfig(**SMALL | {"steps": 20})
    network = train_flow(config, data, progress=lines.append)
    assert len(lines) == 10 and "step 20/20" in lines[-1]
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    start = build_network(config, data)
    assert not torch.equal(start.body.to_pixels.weight, network.body.to_pixels.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_diverging_run_stops(kind):
    with pytest.raises(FloatingPointError, match="Lower lr"):
        train_flow(FlowConfig(kind=kind, **SMALL | {"steps": 50, "lr": 1e30}), DigitsConfig().build())


def test_the_schedule_warms_up_and_ends_low():
    shares = [schedule(step, 100) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and max(shares) == 1
    assert shares[5:] == sorted(shares[5:], reverse=True) and shares[-1] < 0.02
    assert schedule(0, 1) == 1


def test_a_budget_becomes_steps():
    data = DigitsConfig().build()
    config = FlowConfig(**SMALL)
    assert steps_within(1e-9, config, data) == 1
    long, short = steps_within(10.0, config, data), steps_within(1.0, config, data)
    assert 3 * short < long < 30 * short
    assert all(set(LOSSES) == set(tuned) for tuned in TUNED.values())
    assert all(config.network.kind == kind for kind, tuned in TUNED.items() for config in tuned.values())
