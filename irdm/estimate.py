"""What a run will cost, before it is started: parameters, memory on a device, arithmetic and time of a step.

Estimates, and no more: networks are counted (without the attention products, a few per cent), the distance by its
largest matrix products, and a device is judged by one of those.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from irdm.conditions import ClassSpec, NoSpec
from irdm.data.base import Shape
from irdm.distances import AnyDistance
from irdm.encoders import AnyBattery, FittedBatteryConfig, PanelBatteryConfig
from irdm.encoders.panel import entries
from irdm.generators import AnyGenerator, PixelMeanFlowConfig
from irdm.presets import RunConfig

FLOAT = 4  # bytes
EFFICIENCY = 0.5  # of the rate of a large matrix product, which training usually reaches


@dataclass(frozen=True)
class Cost:
    """Of one network: its parameters, and for one image the operations forward and the bytes kept for the way back."""

    parameters: float
    flops: float
    graph_bytes: float


def _cost(megaparameters: float, gigaflops: float, megabytes: float) -> Cost:
    return Cost(megaparameters * 1e6, gigaflops * 1e9, megabytes * 1e6)


PANEL_COSTS = {
    "inception": _cost(21.8, 11.4, 99),
    "convnext": _cost(88.7, 30.7, 98),
    "mae": _cost(303.3, 119.3, 118),
    "clip": _cost(304.0, 196.7, 195),
    "dinov3_l": _cost(303.1, 121.7, 140),
    "pe_core_l": _cost(316.8, 156.6, 181),
    "siglip2": _cost(427.8, 162.6, 146),
    "aimv2_huge": _cost(680.9, 348.4, 306),
    "webssl_dino_1b": _cost(1134.8, 582.5, 508),
    "dreamsim": _cost(257.4, 105.4, 157),
    "dinov2": _cost(303.3, 196.7, 194),
    "siglip_v1": _cost(428.2, 604.2, 541),
    "cradiov3_l": _cost(319.9, 159.9, 156),
    "flux_vae": _cost(34.3, 270.8, 397),
    "inception_logits": _cost(23.9, 11.4, 99),
    "dinov2_224": _cost(303.2, 155.5, 255),
    "clip_336": _cost(304.3, 349.2, 801),
}
"""The panel, counted from its architectures: weights need not be here to know what they will cost."""


def count(network: nn.Module, *inputs: Tensor) -> Cost:
    """A network, for one row of the inputs; one on the meta device is counted with nothing allocated or computed."""
    on_meta = any(tensor.is_meta for tensor in inputs)
    with FakeTensorMode(allow_non_fake_inputs=True) if on_meta else nullcontext():  # autocast knows no meta device
        network = network.to_empty(device="cpu") if on_meta else network
        (flops, kept), (more_flops, more_kept) = (_run(network, inputs, rows) for rows in (2, 4))
    # What does not grow with the rows, such as weights in another precision, is no row's.
    parameters = sum(p.numel() for p in network.parameters())
    return Cost(parameters, (more_flops - flops) / 2, (more_kept - kept) / 2)


def _run(network: nn.Module, inputs: Sequence[Tensor], rows: int) -> tuple[int, int]:
    """Operations of a forward pass over some rows, and the bytes it keeps for the way back."""
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = tensor, storage.nbytes()
        return tensor

    batch = [
        torch.zeros(rows, *tensor.shape[1:], dtype=tensor.dtype, device="cpu", requires_grad=tensor.requires_grad)
        for tensor in inputs
    ]
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        network(*batch)
    return counter.get_total_flops(), sum(size for _, size in kept.values())


def generator_cost(config: AnyGenerator, image_shape: Shape, spec: ClassSpec | NoSpec) -> Cost:
    """A generator, from its configuration. Raises ValueError for one that cannot draw such images."""
    with torch.device("meta"):
        network = config.build(image_shape, spec)
        conditions = [torch.empty(1, dtype=torch.int64)] if spec.width else []
        return count(network, torch.empty(1, *network.noise_shape), *conditions)


def encoder_costs(config: AnyBattery, image_shape: Shape, spec: ClassSpec | NoSpec) -> dict[str, tuple[Cost, int]]:
    """{encoder: (cost, numbers of a feature)}, without weights or data."""
    if isinstance(config, PanelBatteryConfig):
        return {entry.name: (PANEL_COSTS[entry.name], entry.dim) for entry in entries(config.names)}
    if not isinstance(config, FittedBatteryConfig):
        return {"identity": (Cost(0, 0, 0), math.prod(image_shape))}
    battery, image = config.blank(image_shape, classes=spec.width), torch.zeros(1, *image_shape)
    return {
        name: (count(encoder.network, image.requires_grad_()), encoder.dim)
        for name, encoder in battery.encoders.items()
    }


def distance_flops(config: AnyDistance, rollout: int, width: int) -> float:
    """Of one value and its gradient for features of `width` numbers: the matrix products of its largest part."""
    columns = {
        "nystrom-mmd": rollout + getattr(config, "landmarks", 0),
        "rff-mmd": getattr(config, "features", 0),
        "sliced-wasserstein": getattr(config, "directions", 0),
        "frechet": width,
    }.get(config.kind, 2 * rollout)  # those that compare with a batch of real rows
    return 6.0 * rollout * columns * width


@dataclass(frozen=True)
class Estimate:
    """`parameters` of the generator, `memory` in bytes of one rank's device by part, `flops` of a step of all ranks."""

    parameters: float
    memory: dict[str, float]
    flops: float


def estimate(config: RunConfig, image_shape: Shape, spec: ClassSpec | NoSpec, ranks: int = 1) -> Estimate:
    """A step of a run. Letters of method.md: N images a step, m landmarks, d features."""
    generator = generator_cost(config.generator, image_shape, spec)
    encoders = encoder_costs(config.battery, image_shape, spec)
    held_in = getattr(config.battery, "held_in", tuple(encoders))
    trained = [encoders[name] for name in held_in if name in encoders]
    largest = max((cost for cost, _ in trained), key=lambda cost: cost.graph_bytes)
    joint = spec.width if config.joint else 0
    widths = sum(dim + joint for _, dim in trained)
    micro_batch = min(config.micro_batch or config.rollout, -(-config.rollout // ranks))
    memory = {
        "weights, average, moments, gradient": 5 * FLOAT * generator.parameters,
        "encoders": FLOAT * sum(cost.parameters for cost, _ in encoders.values()),
        "half-precision weights of one encoder": 2 * max(cost.parameters for cost, _ in trained),
        "references": FLOAT * widths * getattr(config.distance, "landmarks", 0),
        "features and their gradients": 3 * FLOAT * widths * config.rollout,
        f"micro-batch of {micro_batch}": micro_batch * (generator.graph_bytes + largest.graph_bytes),
        "graphs kept": (config.graph_memory_gib or 0) * 2**30,  # unset, what is free: never too much
    }
    if not isinstance(config.battery, PanelBatteryConfig):
        del memory["half-precision weights of one encoder"]
    if ranks > 1:
        memory["gradient on its way"] = FLOAT * generator.parameters
    recomputed = isinstance(config.generator, PixelMeanFlowConfig) and config.generator.gradient_checkpointing
    # Pass 1 forward; pass 3 forward and backward, where the generator's weights and inputs both have a gradient and the
    # encoders only hand one on. Held-out encoders run at checks alone.
    image = (5 if recomputed else 4) * generator.flops + 3 * sum(cost.flops for cost, _ in trained)
    compared = sum(distance_flops(config.distance, config.rollout, dim + joint) for _, dim in trained)
    return Estimate(generator.parameters, memory, config.rollout * image + compared)


def matmul_rate(device: str, seconds: float = 0.5) -> float:
    """Operations a second of a large square matrix product: bfloat16 on CUDA, else float32; the best of a few."""
    on_cuda = device.startswith("cuda")
    size, dtype = (8192, torch.bfloat16) if on_cuda else (1024, torch.float32)
    a = torch.ones(size, size, device=device, dtype=dtype)
    best, until = 0.0, time.monotonic() + seconds
    while not best or time.monotonic() < until:
        start = time.monotonic()
        product = a @ a
        product[0, 0].item()  # waits for the device
        best = max(best, 2 * size**3 / (time.monotonic() - start))
    return best


def step_seconds(flops: float, rate: float, devices: int = 1) -> float:
    """Seconds of a step on devices that each multiply matrices at `rate`."""
    return flops / (EFFICIENCY * rate * devices)
