"""Baselines of the `peers` studies: flow matching and MeanFlow with the network that iRDM trains.

Images are rows x in [-1, 1]; z_t = (1 - t) x + t e runs from data at t = 0 to Gaussian noise e at t = 1. A *field*
u(z, t, r, labels) is the mean velocity of the path that passes through z at time t, from r <= t to t, so that
z_r = z_t - (t - r) u. At r = t it is the velocity itself, the only one that flow matching knows.

Letters: n rows, d pixels of an image in all channels, c channels, h height, w width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from irdm.conditions import Spec
from irdm.config import Config
from irdm.data import Dataset
from irdm.ema import EMA
from irdm.generators import ConvConfig, Generator, MLPConfig
from irdm.generators.conv import ConvGenerator
from irdm.ops.sampling import generator_for, seed_for

Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # a field: u(z [n d], t [n], r [n], labels [n]) -> [n d]

EARLIEST = 0.05  # from here to t = 0 the velocity's error counts less and less, since it is the image's divided by t
ADAPTIVE_OFFSET = 1e-3  # c of MeanFlow's adaptive weight 1 / (error + c)^p
WARMUP = 0.05  # share of the steps over which the learning rate rises from 0
FINAL_LR = 0.01  # share of the peak learning rate at the last step
CLIP_NORM = 1.0
PROBE_STEPS = 24  # steps of the short run that finds out how long one takes


class FlowConfig(Config):
    """How a baseline is trained. `TUNED` has those of the studies."""

    kind: Literal["flow-matching", "mean-flow"] = "flow-matching"
    """Whether the network learns the velocity at an instant or the mean velocity between two."""
    network: MLPConfig | ConvConfig = Field(default=MLPConfig(), discriminator="kind")
    """The generator whose network becomes the field; how much noise that would take is not read."""
    frequencies: int = Field(default=5, ge=1)
    """Cosines, and sines, that tell the network a time: of pi/2 times 1, 2, 4, ... times it."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    batch: int = Field(default=256, ge=1)
    """Images a step."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are the ones that sample and are judged."""
    time_mean: float = 0.0
    """Mean of the logit of a training time."""
    time_std: float = Field(default=1.0, gt=0)
    """Standard deviation of the logit of a training time."""
    instant_share: float = Field(default=0.5, ge=0, le=1)
    """Share of MeanFlow's rows with r = t, which learn the velocity itself."""
    adaptive_power: float = Field(default=1.0, ge=0)
    """Power p of MeanFlow's adaptive weight; 0 weights all rows alike."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights, the batches, the times and the noise."""


class FlowNetwork(nn.Module):
    """The field of a generator's network as a denoiser: it sees z and the times in place of noise, predicts the image.

    u = (z - image) / t for t > 0. The sigmoid of the generator keeps the image in [-1, 1]. In place of a convolutional
    network's maps of noise is z as well, the mean of its channels, averaged to the size of each map.
    """

    frequencies: Tensor

    def __init__(self, config: FlowConfig, image_shape: tuple[int, int, int], spec: Spec):
        super().__init__()
        self.image_shape, self.kind = tuple(image_shape), config.kind
        self.register_buffer("frequencies", math.pi / 2 * 2.0 ** torch.arange(config.frequencies), persistent=False)
        times = 1 if config.kind == "flow-matching" else 2
        inputs = math.prod(image_shape) + times * 2 * config.frequencies
        self.body = config.network.model_copy(update={"noise_dim": inputs}).build(image_shape, spec)
        self.maps = self.body.map_sizes if isinstance(self.body, ConvGenerator) else []

    def forward(
        self, z: Float[Tensor, "n d"], t: Float[Tensor, " n"], r: Float[Tensor, " n"], labels: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """The velocity at z; flow matching does not read r."""
        times = (t,) if self.kind == "flow-matching" else (t, r)
        angles = torch.cat([each[:, None] * self.frequencies for each in times], dim=1)
        grey = z.unflatten(1, self.image_shape).mean(1, keepdim=True)
        maps = (F.adaptive_avg_pool2d(grey, size).flatten(1) for size in self.maps)
        image = self.body(torch.cat([z, angles.cos(), angles.sin(), *maps], dim=1), labels).flatten(1)
        return (z - (2 * image - 1)) / t[:, None]


class FlowSampler(Generator):
    """A field as a generator: `forward(noise [n, c, h, w], labels [n]) -> images [n, c, h, w]` in [0, 1].

    `steps` Euler steps over equal times from 1 to 0, which for a mean velocity make no error. Raises ValueError for
    fewer than one step.
    """

    def __init__(self, network: FlowNetwork, steps: int):
        super().__init__()
        self.network, self.steps = network, steps
        self.noise_shape = network.image_shape

    @torch.no_grad()
    def forward(self, noise: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
        """`steps` network evaluations; all randomness is in `noise`."""
        x = integrate(self.network, noise.flatten(1), labels, self.steps)
        return ((x + 1) / 2).clamp(0, 1).unflatten(1, self.noise_shape)


def integrate(
    field: Velocity, z: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], steps: int
) -> Float[Tensor, "n d"]:
    """Follow a field from noise z at t = 1 to t = 0 in equal steps. Raises ValueError for fewer than one step."""
    if steps < 1:
        raise ValueError(f"A flow was to be sampled in {steps} steps, expected at least 1.")
    for step in range(steps):
        t, r = (z.new_full((len(z),), 1 - done / steps) for done in (step, step + 1))
        z = z - (t - r)[:, None] * field(z, t, r, labels)
    return z


def flow_matching_loss(
    field: Velocity, x: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], config: FlowConfig, draw: torch.Generator
) -> Float[Tensor, ""]:
    """Squared error of the velocity e - x, damped close to the data (Lipman et al., 2210.02747)."""
    t = draw_times(len(x), config, draw)
    e = torch.randn(x.shape, generator=draw)
    z = x + t[:, None] * (e - x)
    error = field(z, t, t, labels) - (e - x)
    return (error * (t[:, None] / EARLIEST).clamp(max=1)).square().mean()


def mean_flow_loss(
    field: Velocity, x: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], config: FlowConfig, draw: torch.Generator
) -> Float[Tensor, ""]:
    """Squared distance to the MeanFlow target with an adaptive weight (Geng et al., 2505.13447, Sec. 4.3)."""
    first, second = draw_times(len(x), config, draw), draw_times(len(x), config, draw)
    t = torch.maximum(first, second)
    r = torch.where(torch.rand(len(x), generator=draw) < config.instant_share, t, torch.minimum(first, second))
    e = torch.randn(x.shape, generator=draw)
    z = x + t[:, None] * (e - x)
    target = mean_flow_target(field, z, e - x, t, r, labels)
    error = (field(z, t, r, labels) - target).square().sum(1)
    return (error / (error.detach() + ADAPTIVE_OFFSET) ** config.adaptive_power).mean()


@torch.no_grad()
def mean_flow_target(
    field: Velocity,
    z: Float[Tensor, "n d"],
    velocity: Float[Tensor, "n d"],
    t: Float[Tensor, " n"],
    r: Float[Tensor, " n"],
    labels: Int64[Tensor, " n"],
) -> Float[Tensor, "n d"]:
    """v - (t - r) du/dt along the path, dz/dt = v, dr/dt = 0: a mean velocity is its own target (2505.13447, Eq. 6)."""
    target = velocity.clone()
    apart = r < t  # at r = t the derivative has no weight, and is not computed
    z, velocity, t, r, labels = z[apart], velocity[apart], t[apart], r[apart], labels[apart]
    tangents = (velocity, torch.ones_like(t), torch.zeros_like(r))
    _, derivative = torch.func.jvp(lambda z, t, r: field(z, t, r, labels), (z, t, r), tangents)[:2]
    target[apart] -= (t - r)[:, None] * derivative
    return target


def draw_times(count: int, config: FlowConfig, draw: torch.Generator) -> Float[Tensor, " n"]:
    """Logit-normal times in (0, 1) (Esser et al., 2403.03206)."""
    return torch.sigmoid(config.time_mean + config.time_std * torch.randn(count, generator=draw))


LOSSES = {"flow-matching": flow_matching_loss, "mean-flow": mean_flow_loss}

TUNED: dict[str, dict[str, FlowConfig]] = {
    "mlp": {
        "flow-matching": FlowConfig(kind="flow-matching", lr=1e-3),
        "mean-flow": FlowConfig(kind="mean-flow", lr=8e-3, frequencies=3),
    },
    "conv": {
        "flow-matching": FlowConfig(kind="flow-matching", lr=1e-3, network=ConvConfig()),
        "mean-flow": FlowConfig(kind="mean-flow", lr=1e-3, network=ConvConfig()),
    },
}
"""By network: the perceptron's did best on digits, the convolutions' were not searched for."""


def build_network(config: FlowConfig, dataset: Dataset) -> FlowNetwork:
    """The untrained network; the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("flow init", config.seed))
        return FlowNetwork(config, dataset.image_shape, dataset.train.conditions.spec)


def train_flow(config: FlowConfig, dataset: Dataset, *, progress: Callable[[str], None] | None = None) -> FlowNetwork:
    """Train on the train split on the CPU; returns the averaged network, in evaluation mode and frozen.

    One configuration and number of threads give one network, to the bit. `progress` receives about ten lines of text.
    Raises FloatingPointError when the loss is not finite.
    """
    say = progress or (lambda _: None)
    network = build_network(config, dataset)
    ema = EMA(dict(network.named_parameters()), config.ema_decay)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay, foreach=True
    )
    draw = generator_for("flow", config.kind, config.seed)
    images, labels = 2 * dataset.train.images.flatten(1) - 1, dataset.train.conditions.inputs()["labels"]
    for step in range(config.steps):
        rows = torch.randint(len(labels), (config.batch,), generator=draw)
        loss = LOSSES[config.kind](network, images[rows], labels[rows], config, draw)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        if not norm.isfinite():
            raise FloatingPointError(
                f"{config.kind} diverged at step {step + 1}: loss {loss.item():g}, gradient norm {norm.item():g}. "
                f"Lower lr, which is {config.lr:g}."
            )
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule(step, config.steps)
        optimizer.step()
        ema.update(step)
        if (step + 1) % max(1, config.steps // 10) == 0:
            say(f"{config.kind} step {step + 1}/{config.steps}  loss {loss.item():.4g}")
    network.load_state_dict(ema.state_dict())
    return network.requires_grad_(False).eval()


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step from 0: a linear warm-up, then a cosine down to `FINAL_LR`."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    part = (step - warmup) / max(1, steps - warmup)
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * part))


def steps_within(core_seconds: float, config: FlowConfig, dataset: Dataset) -> int:
    """Steps of this configuration that fit into so many seconds of computing on one core; at least one.

    Measured by a short run. The time of all threads counts, so give torch a single one.
    """
    probe = config.model_copy(update={"steps": PROBE_STEPS})
    train_flow(probe, dataset)  # the first steps are slower, and not counted
    began = time.process_time()
    train_flow(probe, dataset)
    return max(1, int(core_seconds * PROBE_STEPS / (time.process_time() - began)))
