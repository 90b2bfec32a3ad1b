"""What holds for every distance."""

import json
from typing import get_args

import ot
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from irdm.distances import AnyDistance, Distance, FrechetConfig, NystromMMD, NystromMMDConfig
from irdm.distances.inputs import join
from irdm.ops.sampling import generator_for, seed_for
from irdm.ops.sliced import unit_directions

CONFIGS = get_args(get_args(AnyDistance)[0])
KINDS = [config.model_fields["kind"].default for config in CONFIGS]
KERNELS = ["nystrom-mmd", "exact-mmd", "rff-mmd"]


def config_of(kind, **fields):
    return TypeAdapter(AnyDistance).validate_python({"kind": kind, **fields})


def draw(n, d=6, shift=0.0, seed=0, dtype=torch.float64):
    return (torch.randn(n, d, generator=generator_for("test", seed), dtype=torch.float64) + shift).to(dtype)


def one_hot(n, seed=0):
    labels = torch.randint(0, 3, (n,), generator=generator_for("labels", seed))
    return torch.nn.functional.one_hot(labels, 3).float()


def small(kind, **fields):
    """A distance with a reference smaller than its data."""
    extra = {"nystrom-mmd": {"landmarks": 40}, "rff-mmd": {"features": 300}}.get(kind, {})
    return config_of(kind, **extra, **fields).build()


class Store:
    """Rows that are not a tensor."""

    def __init__(self, rows):
        self._rows, self.shape = rows, tuple(rows.shape)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        assert not isinstance(index, slice) or index.stop - index.start <= 8192
        return self._rows[index]


def test_a_kind_names_its_distance():
    assert len(set(KINDS)) == len(KINDS) == 6
    for config in CONFIGS:
        distance = config().build()
        assert isinstance(distance, Distance) and distance.Config is config and distance.config == config()
    with pytest.raises(ValidationError):
        config_of("euclid")
    with pytest.raises(ValidationError):
        config_of("nystrom-mmd", landmark=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("joint", [False, True])
def test_a_saved_reference_loads_into_a_fresh_distance(kind, dtype, joint):
    real, fake = draw(200, dtype=dtype), draw(30, seed=1, dtype=dtype)
    tau, fake_tau = (one_hot(200), one_hot(30, 1)) if joint else (None, None)
    distance = small(kind).fit(real, tau, seed=0)
    loaded = small(kind)
    loaded.load_state_dict(distance.state_dict())
    value = distance(fake, fake_tau, step=5)
    assert value.shape == ()
    assert value.dtype == dtype
    assert torch.equal(loaded(fake, fake_tau, step=5), value)


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_is_seeded_and_reads_a_store_like_a_tensor(kind):
    real, fake = draw(200), draw(30, seed=1)
    value = small(kind).fit(real, seed=0)(fake, step=1)
    assert torch.equal(small(kind).fit(real, seed=0)(fake, step=1), value)
    assert torch.equal(small(kind).fit(Store(real), seed=0)(fake, step=1), value)
    if kind != "frechet":
        assert small(kind).fit(real, seed=1)(fake, step=1) != value


@pytest.mark.parametrize("kind", ["exact-mmd", "sliced-wasserstein", "drifting"])
def test_resampling_depends_on_the_step_alone(kind):
    distance, fake = small(kind).fit(draw(200), seed=0), draw(30, seed=1)
    first = distance(fake, step=1)
    assert distance(fake, step=2) != first
    torch.rand(3)
    assert torch.equal(distance(fake, step=1), first)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "drifting"])  # whose goal is a stop-gradient
@pytest.mark.parametrize("joint", [False, True])
def test_finite_differences(kind, joint):
    tau, fake_tau = (one_hot(50), one_hot(8, 1)) if joint else (None, None)
    distance = small(kind).fit(draw(50, 3), tau, seed=0)
    fake = draw(8, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: distance(x, fake_tau, step=1), fake)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "drifting"])
def test_near_zero_on_unseen_real_rows_and_larger_when_shifted(kind):
    distance = small(kind).fit(draw(2000), seed=0)
    values = [distance(draw(1000, shift=shift, seed=1)).item() for shift in (0.0, 0.5, 1.0)]
    assert values[0] < values[1] < values[2]
    assert abs(values[0]) < 0.1 * values[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_common_mean_is_taken_out_first(kind):
    real, fake = draw(200), draw(30, seed=1, shift=0.3)
    expected = small(kind).fit(real, seed=0)(fake, step=1).item()
    moved = small(kind).fit((real + 300).float(), seed=0)((fake + 300).float(), step=1).item()
    assert moved == pytest.approx(expected, rel=2e-2, abs=2e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "drifting"])
def test_conditions_paired_wrongly_are_seen(kind):
    tau = one_hot(2000)
    real = draw(2000) + 3 * tau.double() @ draw(3, seed=9)
    distance = small(kind).fit(real, tau, seed=0)
    right = distance(real[:500], tau[:500]).item()
    wrong = distance(real[:500], tau[:500].roll(1, dims=1)).item()
    assert wrong > 3 * abs(right)


def test_condition_columns_are_scaled_by_sigma_over_their_bandwidth():
    real, tau = draw(50), one_hot(50)
    for s, scale in ((None, 1.0), (0.5, 0.25)):
        distance = small("nystrom-mmd", condition_bandwidth=s, scale=scale).fit(real, tau, seed=0)
        sigma = scale * torch.pdist(real).median()
        torch.testing.assert_close(distance.sigma, sigma)
        torch.testing.assert_close(distance.beta, sigma / (s or 1.0))
        joint = join(real, tau, distance.center, distance.beta)
        torch.testing.assert_close(joint, torch.cat([real - real.mean(dim=0), distance.beta * tau], dim=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_is_refused_in_real_rows_and_gives_nan_in_generated_ones(kind, bad):
    real, fake = draw(60), draw(30, seed=1)
    real[41, 2] = bad
    with pytest.raises(ValueError, match="the first is row 41"):
        small(kind).fit(real, seed=0)
    real[41, 2] = 0
    fake[3, 1] = bad
    fake.requires_grad_()
    value = small(kind).fit(real, seed=0)(fake)
    value.backward()
    assert value.isnan()
    assert fake.grad[torch.arange(30) != 3].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_mismatched_inputs_are_named(kind, unchecked):
    distance = small(kind)
    with pytest.raises(ValueError, match="no reference yet"):
        distance(draw(5))
    with pytest.raises(ValueError, match="at least 2"):
        distance.fit(draw(1), seed=0)
    with pytest.raises(ValueError, match="matrix"):
        distance.fit(draw(20)[None], seed=0)
    with pytest.raises(ValueError, match="pair every row"):
        distance.fit(draw(20), one_hot(19), seed=0)
    distance.fit(draw(20), seed=0)
    for fake in (draw(5, 4), draw(0)):
        with pytest.raises(ValueError, match="same encoder"):
            distance(fake)
    with pytest.raises(ValueError, match="marginal"):
        distance(draw(5), one_hot(5))
    distance.fit(draw(20), one_hot(20), seed=0)
    for tau in (None, one_hot(4), one_hot(5)[:, :2]):
        with pytest.raises(ValueError, match=r"expected \[5, 3\]"):
            distance(draw(5), tau)


@pytest.mark.parametrize("kind", KINDS)
def test_constant_features(kind):
    real, distance = torch.full((20, 4), 0.1), small(kind)
    if kind in KERNELS:
        with pytest.raises(ValueError, match="median distance .* is 0"):
            distance.fit(real, seed=0)
        return
    distance.fit(real, seed=0)
    fake = real.clone().requires_grad_()
    value = distance(fake)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert torch.isfinite(fake.grad).all()
    with pytest.raises(ValueError, match="median distance"):
        distance.fit(real, one_hot(20), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_collapsed_batch_has_a_finite_gradient(kind):
    fake = torch.zeros(16, 6).requires_grad_()
    small(kind).fit(draw(100, dtype=torch.float32), seed=0)(fake).backward()
    assert torch.isfinite(fake.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_lower_the_precision(kind):
    distance, fake = small(kind).fit(draw(100, dtype=torch.float32), seed=0), draw(30, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distance(fake)
    assert torch.equal(inside, distance(fake))
    assert distance(fake.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("kind", KERNELS)
def test_several_bandwidths_give_the_mean(kind):
    real, fake = draw(30), draw(20, seed=1)
    options = {"rff-mmd": {"features": 50_000}}.get(kind, {})
    values = [
        config_of(kind, bandwidths=multiples, **options).build().fit(real, seed=0)(fake).item()
        for multiples in ((0.5,), (2.0,), (0.5, 2.0))
    ]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, rel=0.05 if kind == "rff-mmd" else 1e-9)


def test_a_distance_is_made_from_its_fields_as_from_a_configuration():
    real, fake = draw(100), draw(20, seed=1)
    expected = NystromMMDConfig(landmarks=30, kernel="imq").build().fit(real, seed=0)(fake)
    assert torch.equal(NystromMMD(landmarks=30, kernel="imq").fit(real)(fake), expected)
    assert NystromMMD().config == NystromMMDConfig()
    with pytest.raises(ValidationError, match="landmark"):
        NystromMMD(landmark=3)
    for config, fields in ((NystromMMDConfig(), {"landmarks": 3}), (FrechetConfig(), {})):
        with pytest.raises(ValueError, match="either a NystromMMDConfig or its fields"):
            NystromMMD(config, **fields)


@pytest.mark.parametrize("extreme", [1e-300, 1e300, 0.0, -1.0])
def test_bandwidths_that_no_float_can_square_are_refused(extreme):
    for kind, fields in (
        ("nystrom-mmd", {"scale": extreme}),
        ("exact-mmd", {"bandwidths": (1.0, extreme)}),
        ("frechet", {"condition_bandwidth": extreme}),
        ("drifting", {"radii": (extreme,)}),
    ):
        with pytest.raises(ValidationError, match="greater than or equal to 0.000001|less than or equal to 1000000"):
            config_of(kind, **fields)


@pytest.mark.parametrize("value", [1e-6, 1e6])
def test_the_widest_and_the_narrowest_kernel_are_finite(value):
    real, fake = draw(50, dtype=torch.float32), draw(20, seed=1, dtype=torch.float32).requires_grad_()
    distance = small("nystrom-mmd", scale=value, bandwidths=(value, 1 / value)).fit(real)
    distance(fake).backward()
    assert torch.isfinite(fake.grad).all()


def test_the_whole_pool_gives_the_exact_mmd_its_mean_over_steps():
    distance, fake = small("exact-mmd", batch=20).fit(draw(100)), draw(30, seed=1)
    over_steps = torch.stack([distance(fake, step=step) for step in range(400)])
    assert distance(fake, step=None).item() == pytest.approx(
        over_steps.mean().item(), abs=4 * over_steps.std().item() / 400**0.5
    )
    everything = small("exact-mmd", batch=100).fit(draw(100))
    assert distance(fake, step=None).item() == pytest.approx(everything(fake, step=7).item(), rel=1e-9)


def test_a_saved_reference_of_a_version_with_fewer_fields_loads():
    """What it does not name has its default; another value of the same field is another reference."""
    state, fake = small("nystrom-mmd").fit(draw(100)).state_dict(), draw(20, seed=1)
    fields = json.loads(bytes(state["_extra_state"].tolist()))
    del fields["repulsion"], fields["condition_bandwidth"]
    state["_extra_state"] = torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)
    loaded = small("nystrom-mmd")
    loaded.load_state_dict(state)
    assert torch.equal(loaded(fake), small("nystrom-mmd").fit(draw(100))(fake))
    with pytest.raises(ValueError, match="fitted with repulsion=biased, .* configured with repulsion=unbiased"):
        small("nystrom-mmd", repulsion="unbiased").load_state_dict(state)


def test_a_saved_reference_refuses_another_configuration():
    state = small("nystrom-mmd", kernel="laplace", bandwidths=(1.0, 2.0)).fit(draw(100), seed=0).state_dict()
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())  # safetensors takes nothing else
    small("nystrom-mmd", kernel="laplace", bandwidths=(1.0, 2.0)).load_state_dict(state)
    for fields, found in (
        ({"kernel": "laplace"}, r"fitted with bandwidths=\[1.0, 2.0\], .* configured with bandwidths=\[1.0\]"),
        ({"kernel": "imq", "bandwidths": (1.0, 2.0)}, "fitted with kernel=laplace, .* configured with kernel=imq"),
    ):
        with pytest.raises(ValueError, match=found):
            small("nystrom-mmd", **fields).load_state_dict(state)
    with pytest.raises(ValueError, match="kind=nystrom-mmd"):
        small("exact-mmd").load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
def test_one_generated_row(kind):
    """A batch of one is compared; only a covariance and a mean over pairs need two rows."""
    distance, fake = small(kind).fit(draw(60), seed=0), draw(1, seed=1).requires_grad_()
    if kind == "frechet":
        with pytest.raises(ValueError, match="at least 2"):
            distance(fake)
        return
    distance(fake, step=1).backward()
    assert torch.isfinite(fake.grad).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_near_the_limit_of_float16(kind, dtype):
    """Squares of 60000 overflow float16; the answer is that of the same numbers in float64."""
    half, fake = (draw(60) * 20_000).clamp(-60_000, 60_000).to(dtype), (draw(16, seed=1) * 20_000).to(dtype)
    assert half.abs().max() > 40_000
    value = small(kind).fit(half, seed=0)(fake, step=1)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(small(kind).fit(half.double(), seed=0)(fake.double(), step=1).item(), rel=1e-3)


def test_overflow_is_named_in_real_rows():
    real = draw(60) * 1e4
    real[3] *= 100
    with pytest.raises(ValueError, match="Found 1 rows .* infinity in real .the first is row 3"):
        small("nystrom-mmd").fit(real.half(), seed=0)
    with pytest.raises(ValueError, match="too large to square in torch.float32"):
        small("nystrom-mmd").fit(draw(60, dtype=torch.float32) * 1e25, seed=0)
    assert small("nystrom-mmd").fit(draw(60) * 1e25, seed=0)(draw(9) * 1e25).isfinite()


@pytest.mark.parametrize("size", [5, 200, 900])
def test_sliced_wasserstein_of_unequal_sizes_agrees_with_an_independent_library(size):
    """Fewer real rows than generated, more, and a pool that holds fewer than were asked for."""
    distance = small("sliced-wasserstein", batch=size, directions=20).fit(draw(300), seed=0)
    fake = draw(80, shift=0.3, seed=1).requires_grad_()
    value = distance(fake, step=4)
    real, mine = distance.config.draw(distance.pool, 80, distance.seed, 4), (fake - distance.center).detach()
    assert len(real) == min(size, 300)
    directions = unit_directions(6, 20, seed_for(0, "directions", 4), torch.float64)
    expected = ot.sliced_wasserstein_distance(mine.numpy(), real.numpy(), projections=directions.numpy()) ** 2
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: distance(x, step=4), draw(8, seed=2).requires_grad_())
