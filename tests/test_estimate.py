"""Estimates: counted networks against arithmetic by hand and against networks that run; what they scale with."""

import time
from pathlib import Path

import numpy
import pytest
import torch
from spec import classes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import irdm.estimate
import irdm.train
from irdm.conditions import NoSpec
from irdm.data import DigitsConfig
from irdm.encoders import IdentityBatteryConfig, LocalBatteryConfig
from irdm.encoders.panel import METRICS_ONLY, PANEL, entries
from irdm.estimate import (
    PANEL_COSTS,
    count,
    distance_flops,
    encoder_costs,
    estimate,
    expected,
    generator_cost,
    matmul_rate,
    step_seconds,
)
from irdm.generators import PMF_FAMILIES, PixelMeanFlowConfig
from irdm.overrides import override
from irdm.presets import PRESETS, RunConfig

SMALL = PixelMeanFlowConfig(width=64, depth=2, heads=2, head_depth=1, patch=8)


@pytest.mark.parametrize("trained", [True, False])
def test_a_perceptron_is_counted_as_by_hand(trained):
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(30, 50, bias=False), nn.ReLU(), nn.Linear(50, 7)).requires_grad_(trained)
        cost = count(network, torch.empty(4, 30))
    assert cost.parameters == 30 * 50 + 50 * 7 + 7
    assert cost.flops == 2 * (30 * 50 + 50 * 7)
    # The input of each layer, and relu keeps what is the second one's; without a gradient nothing.
    assert cost.graph_bytes == (4 * (30 + 50) if trained else 0)


def test_a_generator_is_counted_without_its_weights():
    config = SMALL.model_copy(update={"weights": Path("nowhere.safetensors")})
    cost = generator_cost(config, (3, 32, 32), classes(10))
    network = SMALL.build((3, 32, 32), classes(10))
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))
    assert cost.flops == pytest.approx(counter.get_total_flops() / 2, rel=0.05)
    recomputed = generator_cost(config.model_copy(update={"gradient_checkpointing": True}), (3, 32, 32), classes(10))
    assert recomputed.graph_bytes < cost.graph_bytes / 2 and recomputed.flops == cost.flops


def test_the_released_network_costs_two_operations_a_weight_and_token():
    cost = generator_cost(PMF_FAMILIES["B"], (3, 256, 256), classes(1000))
    assert cost.flops == pytest.approx(2 * cost.parameters * (256 + 20), rel=0.1)


def test_the_panel_is_in_the_table_and_its_parameters_fill_the_files():
    assert set(PANEL_COSTS) == {*PANEL, *METRICS_ONLY}
    for name, cost in PANEL_COSTS.items():
        gigabytes = 4 * cost.parameters / 1e9
        # Some files hold a text tower, a decoder or a classifier too.
        (entry,) = entries([name])
        assert 0.45 * entry.weights.gigabytes < gigabytes < 1.1 * entry.weights.gigabytes, name


@pytest.mark.parametrize(("name", "left_out"), [("mae", {"num_classes": 0}), ("dinov2_224", {}), ("clip_336", {})])
def test_the_table_holds_what_the_architecture_says(name, left_out):
    timm = pytest.importorskip("timm")
    (entry,) = entries([name])
    with torch.device("meta"):
        model = timm.create_model(entry.model, **entry.arguments, **left_out).requires_grad_(False)
        found = count(model, torch.empty(1, 3, entry.resolution, entry.resolution))
    assert found.parameters == pytest.approx(PANEL_COSTS[name].parameters, rel=0.01)
    assert found.flops == pytest.approx(PANEL_COSTS[name].flops, rel=0.01)


def test_what_an_estimate_scales_with():
    config = PRESETS["imagenet"]().model_copy(update={"generator": SMALL})

    def of(ranks: int = 1, **fields):
        return estimate(config.model_copy(update=fields), (3, 256, 256), classes(1000), ranks)

    one = of()
    assert of(rollout=2560).flops == pytest.approx(one.flops / 2, rel=0.01)  # the distance grows with the square
    assert sum(of(micro_batch=8).memory.values()) < sum(one.memory.values()) - 24 * 0.5e9
    assert of(ranks=8).flops == one.flops and "gradient on its way" in of(ranks=8).memory
    assert step_seconds(one.flops, 1e14, 8) == pytest.approx(step_seconds(one.flops, 1e14) / 8)
    # The published run: about 80 H200-hours for 4000 steps, on some 700 TFLOP/s.
    published = estimate(PRESETS["imagenet"](), (3, 256, 256), classes(1000))
    assert 0.5 < step_seconds(published.flops, 7e14) * 4000 / 3600 / 80 < 2.5


def test_local_encoders_are_counted_as_they_are_and_without_classes_too():
    config = LocalBatteryConfig()
    costs = encoder_costs(config, (1, 8, 8), classes(10))
    assert set(costs) == {*config.held_in, *config.held_out}
    cost, dim = costs["content"]
    assert dim == 9 and cost.flops > 0 and cost.parameters > 1000
    unlabelled = encoder_costs(config, (1, 8, 8), NoSpec())["content"]
    assert unlabelled[1] == 16, "a code of contrast"
    assert encoder_costs(LocalBatteryConfig(width=32), (1, 8, 8), classes(10))["content"][0].flops > 1.5 * cost.flops
    assert encoder_costs(IdentityBatteryConfig(), (64, 1, 1), NoSpec())["identity"][1] == 64


@pytest.mark.parametrize("kind", ["nystrom-mmd", "exact-mmd", "rff-mmd", "sliced-wasserstein", "frechet", "drifting"])
def test_every_distance_has_a_cost_that_grows(kind):
    config = override(PRESETS["digits"](), {"distance.kind": [kind]}).distance
    assert 0 < distance_flops(config, 64, 32) < distance_flops(config, 128, 32) < distance_flops(config, 128, 64)


def test_a_local_run_is_estimated_too():
    small, large = (
        estimate(PRESETS["digits"]().model_copy(update={"rollout": n}), (1, 8, 8), classes(10)) for n in (512, 1024)
    )
    assert 2 * small.flops <= large.flops < 4 * small.flops
    assert not any("half-precision" in part for part in large.memory)
    assert estimate(PRESETS["digits"](), (1, 8, 8), NoSpec()).flops < large.flops


def test_the_measured_rate_is_a_rate():
    assert 1e7 < matmul_rate("cpu", seconds=0.05) < 1e14


def test_the_time_of_a_run_follows_from_how_often_it_does_what_was_timed(monkeypatch):
    timed = irdm.estimate._Timed
    monkeypatch.setattr(timed, "_rate", lambda self, work: 1e-3)  # to embed, to draw and embed, and to learn an image
    monkeypatch.setattr(timed, "_compare", lambda self, order: 0.06)  # all eight encoders that are held in
    monkeypatch.setattr(timed, "_sort", lambda self: 0.0)
    monkeypatch.setattr(timed, "_pair", lambda self: 0.0)
    dataset = DigitsConfig().build()

    def of(ranks: int = 1, **fields):
        return expected(PRESETS["digits"]().model_copy(update=fields), dataset, ranks=ranks)

    one = of()
    assert one.step == pytest.approx(512 * 1e-3 + 0.06)
    assert one.train == pytest.approx(800 * one.step + 4 * 599e-3), "a check looks at as many images as there are"
    assert one.encoders == pytest.approx(1e-3 * (1198 + 1.3 * 3 * 128 * 200))
    assert one.total == one.encoders + one.reference + one.train + one.evaluate
    assert of(steps=1600).train == pytest.approx(800 * one.step + one.train + 4 * 599e-3)
    assert of(ranks=2).step == pytest.approx(256 * 1e-3 + 0.06 / 2)
    assert of(evaluation=None).evaluate == 0 and of(evaluation=None).train == pytest.approx(800 * one.step)
    assert "hours" in str(of(steps=40_000)) and "--steps" in str(of(steps=40_000)) and "--steps" not in str(one)


def test_a_run_is_timed_on_its_own_parts_and_leaves_the_seed_alone():
    config = PRESETS["digits-smoke"]()
    before = torch.random.get_rng_state()
    found = expected(config, config.data.build())
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(0 < value < 1000 for value in vars(found).values())
    assert found.train > config.steps * found.step and str(found).startswith("about ")


def test_what_cannot_be_timed_beforehand_is_not():
    data = DigitsConfig()
    for changes in ({"battery.kind": ["panel"]}, {"reference": ["references/x"]}):
        assert expected(override(PRESETS["digits"](), changes), data.build()) is None


def test_a_run_says_its_time_before_anything_and_what_is_left_from_the_first_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(irdm.estimate, "TRIAL", 0)
    monkeypatch.setenv("IRDM_CACHE", str(tmp_path / "cache"))
    config = override(PRESETS["digits-smoke"](), {"steps": ["2"], "evaluation": ["none"]})
    irdm.train.train(config, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("estimated time here: about ")
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/2", "2/2"]
    assert "seconds left" in next(line for line in lines if line.startswith("step 1/2"))


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "options"), [("digits", {"steps": ["60"]}), ("folder", {"steps": ["20"]})])
def test_the_estimate_is_right_within_a_half(preset, options, tmp_path, monkeypatch):
    """In seconds of a core, which other programs on this machine change less."""
    monkeypatch.setattr(irdm.estimate.time, "monotonic", time.process_time)
    monkeypatch.setenv("IRDM_CACHE", str(tmp_path / "cache"))
    if preset == "folder":
        images = (torch.rand(1200, 3, 32, 32, generator=torch.manual_seed(0)) * 255).round().byte().numpy()
        numpy.savez(tmp_path / "noise.npz", images=images)
        options |= {"data.path": [str(tmp_path / "noise.npz")]}
    config: RunConfig = override(PRESETS[preset](), {**options, "check_every": ["10"]})
    torch.set_num_threads(1)
    found = expected(config, config.data.build())
    began = time.process_time()
    irdm.train.train(config, tmp_path / "run")
    took = time.process_time() - began
    assert found.total / 1.5 < took < found.total * 1.5, found
