"""What a run will cost, before it is started: parameters, memory on a device, arithmetic and time.

Estimates, and no more. Networks that are large or not here are counted (without the attention products, a few per
cent), the distance by its largest matrix products, and a device is judged by one of those. Small ones are run for a
second, on the device, and the rest follows from how often a run does what was timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from irdm.conditions import Spec, draw
from irdm.data.base import Dataset, Shape
from irdm.distances import AnyDistance, is_joint
from irdm.encoders import AnyBattery, FittedBatteryConfig, IdentityBatteryConfig, PanelBatteryConfig
from irdm.encoders.panel import entries
from irdm.evaluation.defects import DEFECTS
from irdm.evaluation.sensitivity import ladder_rows
from irdm.generators import AnyGenerator, KleinConfig
from irdm.gradcache import GradientCache
from irdm.metrics.ratio import PARTS
from irdm.metrics.sliced_wasserstein import COARSE, SlicedTarget
from irdm.ops.threads import InTurn, SideBySide
from irdm.presets import SMOKE_IMAGES, RunConfig
from irdm.process import keep_freed_memory
from irdm.progress import Say, duration

FLOAT = 4  # bytes
EFFICIENCY = 0.5  # of the rate of a large matrix product, which training usually reaches
LESSON = 1.3  # times a look and back: an encoder that learns also changes its images, and its weights
HOUR = 3600.0  # seconds
TRIAL = 10_000  # images of a run that is over at once


@dataclass(frozen=True)
class Cost:
    """Of one network: its parameters, and for one image the operations forward and the bytes kept for the way back.

    `frozen`: bytes of a generator's weights that are not trained, `divisible` those of them that `--shard` divides.
    """

    parameters: float
    flops: float
    graph_bytes: float
    frozen: float = 0.0
    divisible: float = 0.0


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


def generator_cost(config: AnyGenerator, image_shape: Shape, spec: Spec) -> Cost:
    """A generator, from its configuration: the parameters that are trained, and bytes of the others.

    Raises ValueError for one that cannot draw such images.
    """
    conditions = [tensor.to("meta") for tensor in spec.each(1, 1).inputs().values()]
    with torch.device("meta"):
        network = config.build(image_shape, spec)
        trained = sum(parameter.numel() for parameter in network.trained().values())
        every = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
        inside = {parameter for module in network.divisible() for parameter in module.parameters()}
        divisible = sum(p.numel() * p.element_size() for p in inside if not p.requires_grad)
        cost = count(network, torch.empty(1, *network.noise_shape), *conditions)
    frozen = every - FLOAT * trained + network.bytes_aside
    return replace(cost, parameters=trained, frozen=frozen, divisible=divisible)


def encoder_costs(config: AnyBattery, image_shape: Shape, spec: Spec) -> dict[str, tuple[Cost, int]]:
    """{encoder: (cost, numbers of a feature)}, without weights or data."""
    if isinstance(config, PanelBatteryConfig):
        return {entry.name: (PANEL_COSTS[entry.name], entry.dim) for entry in entries(config.names)}
    if not isinstance(config, FittedBatteryConfig):
        return {"identity": (Cost(0, 0, 0), math.prod(image_shape))}
    battery, image = config.blank(image_shape, spec), torch.zeros(1, *image_shape)
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


def estimate(
    config: RunConfig, image_shape: Shape, spec: Spec, ranks: int = 1, generator: Cost | None = None
) -> Estimate:
    """A step of a run, whose generator may have been counted before.

    Letters of method.md: N images a step, m landmarks, d features.
    """
    generator = generator or generator_cost(config.generator, image_shape, spec)
    encoders = encoder_costs(config.battery, image_shape, spec)
    held_in = getattr(config.battery, "held_in", tuple(encoders))
    names = [name for name in held_in if name in encoders]
    trained = [encoders[name] for name in names]
    largest = max((cost for cost, _ in trained), key=lambda cost: cost.graph_bytes)
    joined = [dim + spec.width * is_joint(config.joint, name) for name, (_, dim) in zip(names, trained, strict=True)]
    widths = sum(joined)
    micro_batch = min(config.micro_batch or config.rollout, -(-config.rollout // ranks))
    divided = ranks if config.shard else 1
    averaged, offloaded = config.ema_decay is not None, getattr(config.battery, "offload", False)
    held = f"weights, {'average, ' * averaged}moments, gradient"
    memory = {
        held: (4 + averaged) * FLOAT * generator.parameters / divided,
        "frozen weights": generator.frozen - generator.divisible * (1 - 1 / divided),
        "encoders": FLOAT * (max if offloaded else sum)(cost.parameters for cost, _ in encoders.values()),
        "half-precision weights of one encoder": 2 * max(cost.parameters for cost, _ in trained),
        "references": FLOAT * widths * getattr(config.distance, "landmarks", 0),
        "features and their gradients": 3 * FLOAT * widths * config.rollout,
        f"micro-batch of {micro_batch}": micro_batch * (generator.graph_bytes + largest.graph_bytes),
        "graphs kept": (config.graph_memory_gib or 0) * 2**30,  # unset, what is free: never too much
    }
    if not isinstance(config.battery, PanelBatteryConfig):
        del memory["half-precision weights of one encoder"]
    if ranks > 1 and not config.shard:
        memory["gradient on its way"] = FLOAT * generator.parameters
    recomputed = getattr(config.generator, "gradient_checkpointing", False)
    few = generator.frozen > FLOAT * generator.parameters  # adapters: most weights have no gradient of their own
    half = getattr(config.generator, "precision", "float32") == "bfloat16" and not few
    if half and isinstance(config.generator, KleinConfig):  # rounded as they are used, and kept unless recomputed
        memory["rounded weights"] = 2 * generator.parameters / (10 if recomputed else 1)
    # Pass 1 forward; pass 3 forward and backward, where the generator's weights and inputs both have a gradient and the
    # encoders only hand one on. Held-out encoders run at checks alone.
    image = (4 + recomputed - few) * generator.flops + 3 * sum(cost.flops for cost, _ in trained)
    compared = sum(distance_flops(config.distance, config.rollout, width) for width in joined)
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


@dataclass(frozen=True)
class Seconds:
    """What the parts of a run take."""

    encoders: float
    """To fit the battery, if irdm's cache has not got it."""
    reference: float
    """To embed the real images, fit the distances and measure the floors."""
    step: float
    """One step of training."""
    train: float
    """All steps and checks."""
    evaluate: float
    """To judge the result, and measure what the scores see."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.encoders + self.reference + self.train + self.evaluate

    def __str__(self) -> str:
        parts = {"fit encoders": self.encoders, "read real images": self.reference, "train": self.train}
        listed = [f"{duration(seconds)} to {what}" for what, seconds in parts.items() if seconds >= 1]
        listed += [f"{duration(self.evaluate)} to judge"] if self.evaluate >= 1 else []
        text = f"about {duration(self.total)}" + (f": {', '.join(listed)}" if len(listed) > 1 else "")
        if self.total > HOUR:
            text += (
                f". Fewer --steps or a smaller --data.size take less; --limit {SMOKE_IMAGES} only tries all parts out"
            )
        return text


def expected(config: RunConfig, dataset: Dataset, device: str = "cpu", ranks: int = 1) -> Seconds | None:
    """The seconds of a run on `device`, from a second or two of its own networks and distance; nothing is fitted.

    None where that cannot be had before the run: with pretrained encoders of the panel, a generator that begins from a
    file, or a reference that is there already. Leaves the global seed alone.
    """
    if not isinstance(config.battery, FittedBatteryConfig | IdentityBatteryConfig):
        return None
    if config.reference is not None or getattr(config.generator, "weights", None) is not None:
        return None
    keep_freed_memory()  # as training does
    with torch.random.fork_rng(devices=[]):
        return _Timed(config, dataset, device, ranks).seconds()


def say_expected(config: RunConfig, dataset: Dataset, device: str, ranks: int, begun: bool, say: Say) -> None:
    """One line on how long a run will take, unless it has begun already, or is over before that could be told."""
    if not begun and config.steps * config.rollout > TRIAL and (found := expected(config, dataset, device, ranks)):
        say(f"estimated time here: {found}")


class _Timed:
    """The networks and a distance of a run, as they are before anything is learned, timed on the device.

    Letters: n images of train, v of val, e encoders, m landmarks, N images a step.
    """

    FEW = 32  # images of the first look
    LONG, SHORT = 1.0, 0.05  # seconds that a measurement may take, and takes at least

    def __init__(self, config: RunConfig, dataset: Dataset, device: str, ranks: int) -> None:
        self.config, self.dataset, self.device, self.ranks = config, dataset, device, ranks
        conditions, shape = dataset.train.conditions, dataset.image_shape
        battery = config.battery
        if isinstance(battery, FittedBatteryConfig):
            blank = battery.blank(shape, conditions.spec)
        else:
            blank = battery.restore(shape, {})  # type: ignore[union-attr]
        self.blank = blank
        self.encoders = {name: encoder.to(device) for name, encoder in blank.encoders.items()}
        self.held_in = {name: self.encoders[name] for name in blank.held_in}
        self.generator = config.generator.build(shape, conditions.spec).to(device)
        self.share = -(-config.rollout // ranks)
        self.order = SideBySide() if device == "cpu" and ranks == 1 else InTurn()

    def seconds(self) -> Seconds:
        """The whole run."""
        config, n, v = self.config, len(self.dataset.train), len(self.dataset.val)
        embed = self._rate(self._pass(self.encoders, learn=False, draw=False))
        embed_in = embed * len(self.held_in) / len(self.encoders)
        drawn = self._rate(self._pass(self.encoders, learn=False))
        compare = self._compare(self.order) / self.ranks  # which share it
        step = self.share * self._rate(self._pass(self.held_in, learn=True)) + compare
        fit = reference = evaluate = checks = 0.0
        if isinstance(config.battery, FittedBatteryConfig):
            shown = config.battery.lessons(self.blank, self.dataset.image_shape, self.dataset.train.conditions.spec)
            fit = embed * min(n, config.battery.images)
            fit += LESSON * sum(k * self._rate(self._look_back(self.encoders[name])) for name, k in shown.items() if k)
        reference = embed_in * (n + v) + self._fit(n, self._compare(InTurn()) / self.ranks)
        if (judged := config.evaluation) is not None:
            rows = min(judged.rows, n, v // 2)
            checks = config.steps / config.check_every * min(judged.quick_rows, n, v) * drawn
            some, others = min(n, judged.table_rows), min(v, judged.table_rows)
            ladder = ladder_rows(min(judged.ladder, rows), v)
            defects = sum(len(defect.levels) for defect in DEFECTS.values())
            evaluate = embed * (n + v + defects * ladder) + drawn * judged.draws * rows
            # Three sliced ratios, of real draws and of folds of judged ones; the ladder's is asked three times.
            draws = (judged.resamples + PARTS * judged.draws) * rows * (6 if ladder else 3)
            pairs = 5 * min(judged.manifold_rows, some, others) ** 2 + some * (judged.draws * rows + others)
            evaluate += len(self.encoders) * (draws * self._sort() + pairs * self._pair())
        train = config.steps * step + checks
        return Seconds(encoders=fit, reference=reference, step=step, train=train, evaluate=evaluate)

    def _pass(self, encoders: Mapping[str, nn.Module], *, learn: bool, draw: bool = True) -> Callable[[int], None]:
        """Draw k images, or take some, and look at them with encoders; learn: with the gradient, as a step does."""
        most = self.config.micro_batch or self.share if learn else 256
        kept = 0 if self.config.graph_memory_gib == 0 or not learn else None
        alone = list(self.generator.trained().values()) if learn and self.device == "cpu" else ()
        cache = GradientCache(encoders, most, kept, alone)

        def work(k: int) -> None:
            rows = torch.arange(k) % len(self.dataset.train)
            inputs = self.dataset.train.conditions[rows].inputs(self.device)
            noise = torch.randn(k, *self.generator.noise_shape).to(self.device)

            def generate(part: slice) -> Tensor:
                if not draw:
                    return torch.zeros(part.stop - part.start, *self.dataset.image_shape, device=self.device)
                return self.generator(noise[part], **{name: value[part] for name, value in inputs.items()})

            features = cache.forward(generate, k)
            if learn:
                cache.backward({name: torch.ones_like(rows) for name, rows in features.items()})

        return work

    def _look_back(self, encoder: nn.Module) -> Callable[[int], None]:
        """An encoder looks at k images, and takes a gradient back to them."""

        def work(k: int) -> None:
            images = torch.zeros(k, *self.dataset.image_shape, device=self.device, requires_grad=True)
            encoder(images).sum().backward()

        return work

    def _rate(self, work: Callable[[int], None]) -> float:
        """Seconds an image of `work(images)`, at the size that a run does it if that takes no more than a second."""
        size = min(self.config.micro_batch or self.share, self.share)
        few = self._time(lambda: work(min(self.FEW, size))) / min(self.FEW, size)
        most = max(1, min(size, int(self.LONG / few)))
        return self._time(lambda: work(most)) / most

    def _time(self, work: Callable[[], object]) -> float:
        """Seconds of a call: the mean of those that fit in a moment, after a first one that makes room."""
        times: list[float] = []
        while len(times) < 2 or (sum(times[1:]) < self.SHORT and len(times) < 20):
            start = time.monotonic()
            work()
            if self.device.startswith("cuda"):
                torch.cuda.synchronize(self.device)
            times.append(time.monotonic() - start)
        return sum(times[1:]) / (len(times) - 1)

    def _compare(self, order: InTurn) -> float:
        """Seconds of the distances of a rollout and their gradients, on rows of the mean width, joint if most are."""
        width = round(sum(encoder.dim for encoder in self.held_in.values()) / len(self.held_in))  # type: ignore[misc]
        conditions, config = self.dataset.train.conditions, self.config
        count = min(len(conditions), getattr(config.distance, "landmarks", config.rollout))
        rows, asked = torch.arange(max(2, count)) % len(conditions), draw(conditions, config.rollout, "estimate", 0)
        real, fake = conditions[rows].tau, conditions[asked].tau
        if 2 * sum(is_joint(config.joint, name) for name in self.held_in) <= len(self.held_in):
            real = fake = None
        distance = config.distance.build().to(self.device).fit(torch.randn(len(rows), width, device=self.device), real)
        features = torch.randn(config.rollout, width, device=self.device, requires_grad=True)
        fake = None if fake is None else fake[0 : config.rollout].to(self.device)

        def work(name: str) -> None:
            torch.autograd.grad(distance(features, fake, step=0), features)

        return self._time(lambda: order.map(work, self.held_in))

    def _sort(self) -> float:
        """Seconds of a row of one of the draws that tell the interval of a ratio, under one encoder."""
        rows = torch.randn(1000, 64, device=self.device)
        target = SlicedTarget.of("random rows", rows, COARSE, 0)
        draws = [torch.randperm(1000)[:500] for _ in range(8)]
        return self._time(lambda: target.distances(rows, draws)) / 4000

    def _pair(self) -> float:
        """Seconds to find neighbours among pairs of rows, a pair."""
        rows = torch.randn(1000, 64, device=self.device, dtype=torch.float64)
        return self._time(lambda: torch.cdist(rows, rows).topk(5, largest=False)) / len(rows) ** 2

    def _fit(self, n: int, compare: float) -> float:
        """Seconds to fit the distances to n rows, where a pair of rows takes what it takes in a comparison."""
        config, m = self.config.distance, getattr(self.config.distance, "landmarks", 0)
        rollout = self.config.rollout
        pair = compare / (rollout * min(n, m or rollout) + rollout**2 / 2)
        pairs = min(n, getattr(config, "constant_rows", 0)) ** 2 / 2 + n * m
        if not 0 < m < n:
            return pair * pairs
        solve = len(getattr(config, "bandwidths", (1,))) * 2 / 3 * m**3 / (matmul_rate(self.device, self.SHORT) / 2)
        looked_at = min(n, getattr(config, "kmeans_rows", 0)) * getattr(config, "kmeans_iterations", 0)
        return pair * (pairs + looked_at * m / 2) + len(self.held_in) * solve
