"""Pixel MeanFlow: the released network's own numbers, exact gradients, and the generator's contract."""

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from spec import classes
from torch import nn

from irdm.cli import main
from irdm.conditions import NoSpec
from irdm.evaluation import read_result
from irdm.generators import PMF_FAMILIES, PixelMeanFlowConfig, load_weights, save_weights
from irdm.generators.pmf import rotate, to_unit_range
from irdm.gradcache import GradientCache
from irdm.memory import GraphMeter

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHAPE, CLASSES = (2, 4, 6), 3
SMALL = PixelMeanFlowConfig(width=24, depth=2, heads=3, head_depth=1, bottleneck=5, class_tokens=3)


def batch(n=5, dtype=torch.float32):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, *SHAPE, generator=draw, dtype=dtype), torch.arange(n) % CLASSES


def small(**fields):
    """A small network, the same weights whatever the fields that do not shape it."""
    torch.manual_seed(0)
    return SMALL.model_copy(update=fields).build(SHAPE, classes(CLASSES))


def gradients_of(module):
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize(
    ("output", "steps", "guidance", "interval"),
    [("out_1step", 1, 7.0, (0.2, 0.6)), ("out_2step", 2, 7.0, (0.2, 0.6)), ("out_1step_cfg1", 1, 1.0, (0.0, 1.0))],
)
def test_agrees_with_the_released_network(output, steps, guidance, interval, tmp_path):
    told = json.loads((FIXTURES / "pmf_tiny.json").read_text())
    tensors = load_file(FIXTURES / "pmf_tiny.safetensors")
    prefix = "state."
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    save_file(state, tmp_path / "weights.safetensors")
    config = PixelMeanFlowConfig(
        width=told["hidden_size"],
        depth=told["depth"],
        heads=told["num_heads"],
        head_depth=told["head_depth"],
        patch=told["patch_size"],
        bottleneck=told["bottleneck_dim"],
        class_tokens=told["class_tokens"],
        guidance_tokens=told["guidance_tokens"],
        interval_tokens=told["interval_tokens"],
        time_tokens=told["time_tokens"],
        guidance=guidance,
        interval=interval,
        weights=tmp_path / "weights.safetensors",
    )
    generator = config.build((3, told["image_size"], told["image_size"]), classes(told["num_classes"]))
    with torch.no_grad():
        drawn = generator.sample(tensors["noise"], tensors["labels"], steps)
        torch.testing.assert_close(drawn, tensors[output], rtol=0, atol=1e-5)
        if steps == 1:
            images = generator(tensors["noise"], tensors["labels"])
            torch.testing.assert_close(images, ((tensors[output] + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)


def test_h_has_the_names_and_shapes_of_the_release():
    with torch.device("meta"):
        network = PMF_FAMILIES["H"].build((3, 256, 256), classes(1000))
    released = json.loads((FIXTURES / "pmf_h_state_dict.json").read_text())
    assert {name: [*tensor.shape] for name, tensor in network.state_dict().items()} == released
    assert sum(p.numel() for p in network.parameters()) == sum(map(math.prod, released.values()))
    assert abs(sum(p.numel() for p in network.parameters()) / 1e6 - 955.5) < 0.1


def test_the_families_grow():
    with torch.device("meta"):
        networks = {name: config.build((3, 256, 256), classes(1000)) for name, config in PMF_FAMILIES.items()}
    blocks = {name: [*net.net.shared_blocks, *net.net.u_heads] for name, net in networks.items()}
    assert {name: (len(b), len(b[0].attn_scale), b[0].attn.heads) for name, b in blocks.items() if name != "tiny"} == {
        "B": (16, 768, 12),
        "L": (32, 1024, 16),
        "H": (48, 1280, 16),
    }
    assert {name: net.net.x_embedder.proj1.out_channels for name, net in networks.items()} == {
        "tiny": 32,
        "B": 128,
        "L": 128,
        "H": 256,
    }
    sizes = [sum(p.numel() for p in net.parameters()) for net in networks.values()]
    assert sizes == sorted(sizes)


def test_contract():
    generator = small()
    noise, labels = batch(9)
    images = generator(noise, labels)
    assert generator.noise_shape == SHAPE
    assert images.shape == (9, *SHAPE) and images.min() >= 0 and images.max() <= 1
    assert not torch.allclose(images, generator(noise, (labels + 1) % CLASSES)), "labels must matter"
    assert not torch.allclose(images, generator(-noise, labels)), "noise must matter"
    assert torch.allclose(images[3:5], generator(noise[3:5], labels[3:5]), atol=1e-6)
    images.sum().backward()
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients_of(generator).values())
    unconditional = SMALL.build(SHAPE, NoSpec())
    assert unconditional(noise).shape == images.shape, "every image is of the null class"


def test_patches_return_to_their_places():
    """Numbers of the last layer go to row, column and channel of a patch, in this order."""
    generator = small(patch=2)
    with torch.no_grad():
        final = generator.net.u_final_layer.linear.linear
        final.weight.zero_()
        final.bias.copy_(torch.arange(8.0))
        drawn = generator.sample(*batch(2))
    for row in range(2):
        for column in range(2):
            for channel in range(2):
                expected = row * 4 + column * 2 + channel
                assert torch.allclose(drawn[:, channel, row::2, column::2], torch.tensor(float(expected)), atol=1e-5)


def test_gradients_match_finite_differences():
    generator = small().double()
    noise, labels = batch(dtype=torch.float64)
    target = torch.randn_like(noise)
    loss = lambda: ((generator(noise, labels) - 0.5) * target).square().sum()  # noqa: E731
    with torch.no_grad():
        generator.net.u_final_layer.linear.linear.weight *= 0.2  # well inside the range, where the clamp is exact
        images = generator(noise, labels)
        assert images.min() > 0 and images.max() < 1
    loss().backward()
    parameters = list(generator.parameters())
    for _ in range(3):
        directions = [torch.randn_like(p) * p.norm() / p.numel() ** 0.5 for p in parameters]
        values = []
        with torch.no_grad():
            for move in (1e-6, -2e-6, 1e-6):
                torch._foreach_add_(parameters, directions, alpha=move)
                values.append(loss().item())
        found = sum((p.grad * d).sum().item() for p, d in zip(parameters, directions, strict=True))
        assert found == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)


def test_checkpointing_changes_memory_and_not_one_bit_of_the_gradient():
    noise, labels = batch()
    grads, stored = [], []
    for checkpointing in (False, True):
        generator = small(gradient_checkpointing=checkpointing)
        meter = GraphMeter()
        with meter:
            loss = generator(noise, labels).square().sum()
        loss.backward()
        grads.append(gradients_of(generator))
        stored.append(meter.bytes)
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
    tokens = 3 + 1 + 2 + 1 + 6
    inputs_of_blocks = SMALL.depth * len(noise) * tokens * SMALL.width * 4
    assert inputs_of_blocks <= stored[1] < stored[0] / 2, "the gradient cache must see what is kept"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bfloat16_stays_close_and_gives_float32(checkpointing):
    noise, labels = batch()
    exact, rough = small(), small(precision="bfloat16", gradient_checkpointing=checkpointing)
    images = {}
    for name, generator in (("exact", exact), ("rough", rough)):
        images[name] = generator(noise, labels)
        images[name].square().sum().backward()
    assert images["rough"].dtype == torch.float32
    difference = (images["rough"] - images["exact"]).norm() / images["exact"].norm()
    assert 1e-5 < difference < 0.03
    flat = [torch.cat([g.flatten() for g in gradients_of(generator).values()]) for generator in (exact, rough)]
    assert flat[1].dtype == torch.float32
    assert torch.cosine_similarity(flat[0], flat[1], dim=0) > 0.98


def test_an_outer_autocast_does_not_reach_the_blocks_of_a_float32_network():
    noise, labels = batch()
    inputs = []
    generator = small()
    generator.net.u_heads[0].mlp.w2.register_forward_hook(lambda layer, args, output: inputs.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        generator(noise, labels)
    assert inputs == [torch.float32]


@pytest.mark.parametrize(("micro_batch", "checkpointing"), [(2, False), (4, True), (7, False)])
def test_the_gradient_is_the_same_for_any_micro_batch(micro_batch, checkpointing):
    noise, labels = batch(7, dtype=torch.float64)
    encoders = {"flat": nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).double().requires_grad_(False)}
    coupled = lambda x: (x @ x.T).tanh().mean()  # noqa: E731

    def feature_gradients(features):
        leaf = features["flat"].clone().requires_grad_()
        return {"flat": torch.autograd.grad(coupled(leaf), leaf)[0]}

    whole = small().double()
    coupled(encoders["flat"](whole(noise, labels))).backward()
    parts = small(gradient_checkpointing=checkpointing).double()
    cache = GradientCache(encoders, micro_batch, 1 << 20)
    cache.backward(feature_gradients(cache.forward(lambda rows: parts(noise[rows], labels[rows]), 7)))
    torch.testing.assert_close(gradients_of(parts), gradients_of(whole), rtol=1e-9, atol=1e-12)


def test_the_clamp_loses_no_pixel():
    images = torch.tensor([-0.5, -0.5, 0.3, 0.3, 1.5, 1.5, 0.0, 1.0], requires_grad=True)
    clamped = to_unit_range(images)
    assert clamped.tolist() == pytest.approx([0, 0, 0.3, 0.3, 1, 1, 0, 1])
    clamped.backward(torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 2.0, -2.0]))
    assert images.grad.tolist() == [-1, 0, -1, 1, 1, 0, 2, -2]
    pixel = torch.tensor([1.5], requires_grad=True)
    optimizer = torch.optim.SGD([pixel], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        (to_unit_range(pixel) - 0.25).square().sum().backward()
        optimizer.step()
    assert pixel.item() == pytest.approx(0.25, abs=1e-2), "a plain clamp would leave it at 1.5 for ever"


def test_rotation_is_relative():
    """The product of a rotated query and a rotated key depends on the difference of their positions alone."""
    net = PixelMeanFlowConfig(width=16, heads=2, patch=1).build((1, 5, 4), classes(1)).net
    turn = net._rotation(torch.zeros(1, dtype=torch.float64))
    query, key = torch.randn(2, 8, dtype=torch.float64)
    spread = lambda row: row.expand(1, 1, net.prefix + 20, 8)  # noqa: E731
    products = (rotate(spread(query), turn) @ rotate(spread(key), turn).mT)[0, 0]
    assert torch.allclose(products[: net.prefix, : net.prefix], query @ key, atol=1e-12), "tokens that are no patches"
    grid = products[net.prefix :, net.prefix :].reshape(5, 4, 5, 4)
    assert torch.allclose(grid[0, 0, 2, 1], grid[2, 2, 4, 3], atol=1e-12)
    assert (grid[0, 0, 2, 1] - grid[0, 0, 1, 2]).abs() > 1e-3, "rows and columns differ"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"width": 40, "heads": 4}, "multiple of 16"),
        ({"depth": 2, "head_depth": 3}, "head_depth is 3"),
        ({"interval": (0.6, 0.2)}, "in order"),
        ({"interval": (0.0, 1.5)}, "between 0 and 1"),
        ({"guidance": 0.5}, "greater than or equal to 1"),
        ({"weights_sha256": "0" * 64}, "without weights"),
        ({"weights_sha256": "abc"}, "pattern"),
        ({"precision": "float16"}, "bfloat16"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, says):
    with pytest.raises(ValidationError, match=says):
        PixelMeanFlowConfig(**fields)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="images are 8x6 and the patch 4.*divides 2"):
        PixelMeanFlowConfig(patch=4).build((1, 8, 6), classes(10))


def test_every_field_that_shapes_the_network_does():
    def size(**fields):
        return sum(p.numel() for p in PixelMeanFlowConfig(**fields).build((1, 8, 8), classes(10)).parameters())

    fields = ["width", "depth", "patch", "bottleneck", "class_tokens", "guidance_tokens", "interval_tokens"]
    changed = {name: size(**{name: getattr(PixelMeanFlowConfig(), name) * 2}) for name in fields}
    assert size() not in changed.values() and size(time_tokens=3) != size()
    noise, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    outputs = []
    for told in ({}, {"guidance": 3.0}, {"interval": (0.1, 0.6)}, {"interval": (0.2, 0.7)}, {"heads": 2}):
        torch.manual_seed(0)
        outputs.append(PixelMeanFlowConfig(**told).build((1, 8, 8), classes(10)).sample(noise, labels))
    assert all(not torch.allclose(outputs[0], other, atol=1e-6) for other in outputs[1:])


def test_trains_on_digits_from_the_command_line_and_from_weights(tmp_path, capsys):
    torch.manual_seed(5)
    start = PixelMeanFlowConfig(width=32, depth=2, head_depth=1).build((1, 8, 8), classes(10))
    save_weights(start, tmp_path / "start.safetensors")
    train = ["train", "digits-smoke", "--rollout", "32", "--micro-batch", "20", "--steps", "3", "--device", "cpu"]
    train += ["--generator.kind", "pmf", "--generator.width", "32", "--generator.depth", "2"]
    train += ["--generator.head_depth", "1", "--generator.interval", "0.1", "0.7", "--graph-memory-gib", "0"]
    train += ["--battery.held-in", "pixels", "--battery.held-out", "pca"]
    assert (
        main([*train, "--generator.weights", str(tmp_path / "start.safetensors"), "--out", str(tmp_path / "run")]) == 0
    )
    result = read_result(tmp_path / "run")
    assert result.training["steps"] == 3 and math.isfinite(result.scores["sw_ratio"].mean.value)
    trained = load_file(tmp_path / "run/checkpoints/step-00000003/generator.safetensors")
    moved = {name: (trained[name] - value).abs().max().item() for name, value in start.state_dict().items()}
    assert 0 < max(moved.values()) < 0.01, "it starts at the weights and leaves them by small steps"
    load_weights(start, tmp_path / "run/checkpoints/step-00000003/ema.safetensors")
    assert main(["check", "digits-smoke", "--generator.kind", "pmf", "--generator.patch", "3"]) == 1
    assert "patch 3, which does not divide" in capsys.readouterr().out
