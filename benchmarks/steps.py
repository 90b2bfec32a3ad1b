"""What is measured of training: the gradient cache, a whole step of the large recipes, and whole runs.

The large networks have random weights of the published sizes: what they cost does not depend on their values. Those of
the panel that only timm describes are there; the others are named as left out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from cases import Case, rows
from torch import Tensor, nn

from irdm.build import build_battery, build_generator, build_optimizer
from irdm.conditions import ClassSpec, PromptSpec, Spec, draw
from irdm.config import Config
from irdm.distances import NystromMMDConfig
from irdm.encoders.base import Encoder
from irdm.encoders.families import PanelNetwork, TimmFeatures
from irdm.encoders.panel import PanelBatteryConfig, entries
from irdm.estimate import PANEL_COSTS, count, distance_flops, generator_cost
from irdm.experiments.base import perceptron
from irdm.generators.klein_folder import published_sizes
from irdm.gradcache import GradientCache
from irdm.objective import Objective
from irdm.presets import PRESETS, RunConfig
from irdm.rollouts import Rollouts

TIMM = ("timm", "dinov2")


def gradcache(device: str, small: bool) -> Iterator[Case]:
    """What the gradient cache saves when graphs fit the memory, and when encoders have weight 0.

    Perceptron and battery of the studies; the loss's gradient is free, so that forward and backward passes are timed.
    """
    n, micro_batch = (64, 16) if small else (1024, 256)
    config = perceptron()
    config = config.model_copy(update={"battery": config.battery.model_copy(update={"steps": 1})})
    dataset = config.data.build()
    battery = build_battery(config, dataset, None, device, print)
    encoders = {name: battery.encoders[name] for name in battery.held_in}
    conditions = dataset.train.conditions
    generator = build_generator(config, dataset.image_shape, conditions.spec).to(device)
    noise = torch.randn(n, *generator.noise_shape, device=device)
    inputs = conditions[draw(conditions, n, "benchmark")].inputs(device)

    def step(idle: tuple[str, ...], cache: GradientCache) -> None:
        features = cache.forward(
            lambda part: generator(noise[part], **{name: value[part] for name, value in inputs.items()}), n, idle
        )
        cache.backward({name: torch.ones_like(x) for name, x in features.items() if name not in idle})

    work = f"gradient cache: {len(encoders)} encoders, rollout {n} by {micro_batch}"
    heavy = ("content", "patches", "bands")
    for idle in ((), heavy):
        for name, kept in (("no graph kept", 0), ("all graphs kept", 1 << 34)):
            says = f"{name}{f', {len(idle)} encoders at weight 0' if idle else ''}"
            cache = GradientCache(encoders, micro_batch, kept)
            yield Case(work, says, partial(step, idle, cache), images=n)


class Small(nn.Module):
    """In place of a large encoder, to see that the step works."""

    def __init__(self, dim: int):
        super().__init__()
        self.map = nn.Linear(3, dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.map(images.mean((2, 3)))


def panel_of(device: str, small: bool) -> tuple[dict[str, Encoder], list[str], float]:
    """Encoders of the panel at random weights, the names of those left out, and operations of one image forward."""
    if small:
        network = Small(8)
        return {"small": Encoder("small", 8, network).to(device)}, [], count(network, torch.zeros(1, 3, 8, 8)).flops
    import timm

    made, flops = {}, 0.0
    chosen = entries(PanelBatteryConfig().held_in)
    for entry in chosen:
        if entry.family in TIMM:
            with torch.device(device):
                model = timm.create_model(entry.model, **dict(entry.arguments))
            network = PanelNetwork(entry, TimmFeatures(model, entry.pooling))
            made[entry.name] = Encoder(entry.name, entry.dim, network).to(device)
            flops += PANEL_COSTS[entry.name].flops
    return made, [entry.name for entry in chosen if entry.name not in made], flops


def random_network(config: Config, shape: tuple[int, int, int], spec: Spec, device: str) -> nn.Module:
    """A generator of a configuration with random weights, of its sizes alone: no file is read."""
    with torch.device("meta"):
        network = config.build(shape, spec)
    network = network.to_empty(device=device).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.02)
        for buffer in network.buffers():
            buffer.fill_(1)
    return network


def whole_step(
    recipe: str, config: RunConfig, shape: tuple[int, int, int], spec: Spec, device: str, small: bool
) -> Iterator[Case]:
    """A step as training takes it: noise, three passes, the loss of every encoder, the optimizer."""
    encoders, missing, encoder_flops = panel_of(device, small)
    micro_batch = 4 if small else config.micro_batch or 32
    n = 8 * micro_batch
    wanted = NystromMMDConfig(
        landmarks=32 if small else getattr(config.distance, "landmarks", 4096), kmeans_iterations=1, constant_rows=1024
    )
    generator = random_network(config.generator, shape, spec, device)
    distances = {}
    for name, encoder in encoders.items():
        real = rows(2 * wanted.landmarks, encoder.dim, name, device)
        distances[name] = wanted.build().fit(real, None, seed=0).to(device)
    objective = Objective(distances, dict.fromkeys(encoders, 1.0))
    parameters = list(generator.trained().values())
    optimizer = build_optimizer(config, parameters)
    cache = GradientCache(encoders, micro_batch, 0)
    conditions, weights = spec.each(1, 64), dict.fromkeys(encoders, 1 / len(encoders))
    told = {"seed": 0, "steps": 1 << 30, "joint": False, "device": device}
    rollouts, done = Rollouts(conditions, generator.noise_shape, n, slice(0, n), **told), [0]

    def step() -> None:
        asked, done[0] = rollouts(done[0]), done[0] + 1
        optimizer.zero_grad(set_to_none=True)
        features = cache.forward(lambda part: asked.images(generator, part), n)
        cache.backward(objective(features, None, weights, done[0]).gradients)
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()

    drawn = generator_cost(config.generator, shape, spec).flops
    recomputed = getattr(config.generator, "gradient_checkpointing", False)
    flops = n * ((4 + recomputed) * drawn + 3 * encoder_flops)
    flops += sum(distance_flops(wanted, n, encoder.dim) for encoder in encoders.values())
    without = f", without {', '.join(missing)}" if missing else ""
    work = f"a step of {recipe} at random weights: {n} images of {config.rollout}, {len(encoders)} encoders{without}"
    half = getattr(config.generator, "precision", "float32") == "bfloat16"
    products = "bfloat16" if half and device == "cuda" else "float32"
    yield Case(work, "irdm", step, flops=flops, images=n, products=products)


def imagenet(device: str, small: bool) -> Iterator[Case]:
    """Of pMF-H and the panel at 256 x 256."""
    config, side = PRESETS["imagenet"](), 16 if small else 256
    update = {"weights": None, "weights_sha256": None}
    if small:
        update |= {"width": 16, "depth": 2, "head_depth": 1, "heads": 2, "bottleneck": 8, "patch": 4}
    config = config.model_copy(update={"generator": config.generator.model_copy(update=update)})
    spec = ClassSpec(names=tuple(map(str, range(1000))))
    yield from whole_step("imagenet", config, (3, side, side), spec, device, small)


def klein(device: str, small: bool) -> Iterator[Case]:
    """Of FLUX.2 [klein] 4B and the panel at 512 x 512, on contexts of zeros."""
    config = PRESETS["klein-tiny" if small else "klein"]()
    if not small:
        folder = {"model": published_sizes(), "contexts": None}
        config = config.model_copy(update={"generator": config.generator.model_copy(update=folder)})
    side = 32 if small else 512
    spec = PromptSpec(embedder="none", width=1, examples=("a red cube",))
    yield from whole_step("klein", config, (3, side, side), spec, device, small)


def training(preset: str, device: str, small: bool) -> Iterator[Case]:
    """Some steps of a whole run by `irdm train`, its start and its end left out."""
    from irdm.train import train

    config = PRESETS["digits-smoke" if small else preset]()
    steps = 4 if small else 60
    update = {"steps": steps, "evaluation": None, "log_every": 1, "check_every": steps, "checkpoint_every": steps}
    config = config.model_copy(update=update | {"device": device})

    def seconds() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            train(config, Path(folder) / "run")
            lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
        clock = [line["seconds" if device == "cuda" else "core_seconds"] for line in lines]
        return [after - before for before, after in zip(clock[steps // 4 :], clock[steps // 4 + 1 :], strict=False)]

    yield Case(
        f"a step of training {preset}{', for which digits-smoke stands' * small}: rollout {config.rollout}",
        "irdm train",
        clocked=seconds,
        images=config.rollout,
    )
