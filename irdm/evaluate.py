"""Judge a generator: images -> encoders -> features -> metrics. Shares only `ops` and `features` with training.

Letters: n rows, c channels, h height, w width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from irdm.data.base import Dataset, Split
from irdm.encoders.base import Battery
from irdm.features import extract
from irdm.images import image_grid
from irdm.metrics import DIRECTIONS, METRICS, EvaluationConfig, Real, Sample
from irdm.metrics.base import MIN_ROWS, stratified_rows
from irdm.metrics.neighbours import nearest_neighbours
from irdm.metrics.sliced_wasserstein import SlicedBank
from irdm.ops.sampling import generator_for, normal_rows

__all__ = ["Evaluation", "EvaluationConfig", "QuickCheck", "bounded", "evaluate", "generate", "sample_grid"]

LARGE = 64  # pixels a side above which a picture of many images holds fewer of them
ROOM = {False: (20, 10), True: (12, 5)}  # classes, and images of each, in a picture of images that are (not) large
ROUNDING = 1e-3  # how far outside [0, 1] an image may lie


@dataclass(frozen=True)
class Evaluation:
    """`result`: numbers for result.json. `arrays`: a gallery for samples/evaluation.npz, images uint8 [n, c, h, w]."""

    result: dict
    arrays: dict[str, NDArray]


@torch.no_grad()
def generate(
    generator: nn.Module, labels: Int64[Tensor, " n"], seed: int, micro_batch: int, device: torch.device | str
) -> Float32[Tensor, "n c h w"]:
    """One image a label, on the CPU. Noise depends on the seed and the row alone, never on the micro-batch.

    The generator runs in evaluation mode and is put back as it was. Raises ValueError for images that are not finite or
    outside [0, 1].
    """
    shape: tuple[int, ...] = generator.noise_shape  # type: ignore[assignment]
    noise = normal_rows(slice(0, len(labels)), shape, "evaluate", seed)
    training = generator.training
    generator.eval()
    try:
        images = torch.cat(
            [
                generator(z.to(device), c.to(device)).float().cpu()
                for z, c in zip(noise.split(micro_batch), labels.split(micro_batch), strict=True)
            ]
        )
    finally:
        generator.train(training)
    if bad := int((~images.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(f"The generator returned NaN or infinity in {bad} of {len(images)} images; training diverged.")
    low, high = images.min().item(), images.max().item()
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"Generated images span {low:g} to {high:g}, expected 0 to 1. End the generator with a sigmoid."
        )
    return images.clamp(0, 1)


def evaluate(
    generator: nn.Module,
    battery: Battery,
    dataset: Dataset,
    config: EvaluationConfig,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Every metric of `METRICS`, on `replicates` generated draws that each match val and test in rows and classes.

    Generator and battery must be on `device` already; images are held in memory. Nothing depends on the micro-batch,
    to rounding. Raises ValueError for splits with too few rows, and naming an encoder that is missing or not finite.
    """
    say = progress or (lambda _: None)
    say("embedding real images")
    frequencies = dataset.train.labels
    dataset = bounded(dataset, config.rows, config.seed)
    real = _embed_real(battery, dataset, config, device)
    say(f"drawing {config.replicates} x {len(real.val)} images")
    generated = _draw(generator, battery, frequencies, config, len(real.val), config.replicates, device)
    result: dict = {}
    for name, metric in METRICS.items():
        say(name)
        result[name] = {"name": name, "direction": DIRECTIONS[name]} | metric(generated, real, config)
    splits = {name: len(getattr(real, name)) for name in ("train", "val", "test")}
    result["samples"] = {"generated": len(generated), "replicates": config.replicates, **splits}
    result["protocol"] = _protocol(battery, dataset, config, result["samples"])
    return Evaluation(result, _gallery(generated, real, config.gallery_per_class))


def _protocol(battery: Battery, dataset: Dataset, config: EvaluationConfig, samples: dict[str, int]) -> dict:
    """What two results must share for `irdm.compare`: data, encoders with their weights, rows, settings and seeds."""
    cosmetic = {"micro_batch", "quick_directions", "quick_rows", "gallery_per_class"}
    return {
        "reference": dataset.fingerprint,
        "panel": {name: _digest(encoder) for name, encoder in battery.encoders.items()},
        "held_out": sorted(battery.held_out),
        "samples": samples,
        "settings": config.model_dump(mode="json", exclude=cosmetic),
    }


def _digest(module: nn.Module) -> str:
    """A hash of every weight and buffer, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class QuickCheck:
    """A cheap SW ratio for use during training. The real side is embedded, projected and sorted once, here.

    Labels and noise are the same at every call, so that the numbers of two calls differ by the generator alone. Only
    train and val are compared: nothing may be chosen on test.
    """

    def __init__(
        self, battery: Battery, dataset: Dataset, config: EvaluationConfig, device: torch.device | str = "cpu"
    ):
        """Generator and battery must be on `device`. Raises ValueError as `evaluate` does."""
        self.battery, self.config, self.device = battery, config, device
        self.frequencies = dataset.train.labels
        real = _embed_real(battery, bounded(dataset, config.quick_rows, config.seed), config, device)
        self.rows = len(real.val)
        self.bank = SlicedBank(real.train.features, config.quick_directions, config.seed)
        self.real_distances = self.bank.distances(real.val.features)

    def __call__(self, generator: nn.Module) -> dict[str, float]:
        """{"held_in": ratio, "held_out": ratio}; a group that the battery does not have is left out."""
        drawn = _draw(generator, self.battery, self.frequencies, self.config, self.rows, 1, self.device)
        ratios = dict(
            zip(self.bank.names, (self.bank.distances(drawn.features) / self.real_distances).tolist(), strict=True)
        )
        groups = {"held_in": self.battery.held_in, "held_out": self.battery.held_out}
        return {group: sum(ratios[name] for name in names) / len(names) for group, names in groups.items() if names}


def _embed(
    battery: Battery,
    images: Tensor,
    labels: Tensor,
    config: EvaluationConfig,
    device: torch.device | str,
) -> Sample:
    """Images with their features, a micro-batch on the device at a time."""
    encoders = dict(battery.encoders.items())
    parts = [extract(encoders, chunk.to(device), config.micro_batch) for chunk in images.split(config.micro_batch)]
    return Sample(images, labels, {name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def bounded(dataset: Dataset, most: int, seed: int) -> Dataset:
    """The dataset with at most `most` rows a split, as many of val as of test, the classes in proportion.

    The rows are random, seeded, and all that is read of images that are not in memory. Raises ValueError for splits
    with too few rows.
    """
    sizes = {name: len(getattr(dataset, name)) for name in ("train", "val", "test")}
    n = min(most, sizes["val"], sizes["test"])
    if n < MIN_ROWS or sizes["train"] < 2 * MIN_ROWS:
        raise ValueError(
            f"The splits have {sizes} rows; an evaluation needs at least {2 * MIN_ROWS} in train and {MIN_ROWS} in "
            "each of val and test, and hundreds to mean something. Add images or change the split."
        )
    splits = {}
    for name, count in {"train": most, "val": n, "test": n}.items():
        split: Split = getattr(dataset, name)
        if count < len(split):
            split = split.take(stratified_rows(split.labels, count, generator_for("evaluate", "rows", name, seed)))
        splits[name] = split
    return replace(dataset, **splits)


def _embed_real(battery: Battery, dataset: Dataset, config: EvaluationConfig, device: torch.device | str) -> Real:
    """The real side: every row of a bounded dataset."""
    names = sorted(battery.encoders)
    if sorted(battery.held_in + battery.held_out) != names:
        raise ValueError(f"The battery divides {battery.held_in} + {battery.held_out}, but its encoders are {names}.")
    splits = (dataset.train, dataset.val, dataset.test)
    train, val, test = (_embed(battery, split.images, split.labels, config, device) for split in splits)
    return Real(train, val, test, tuple(battery.held_out))


def _draw(
    generator: nn.Module,
    battery: Battery,
    train: Int64[Tensor, " n"],
    config: EvaluationConfig,
    rows: int,
    replicates: int,
    device: torch.device | str,
) -> Sample:
    """Replicates of `rows` generated images, each with the classes of the labels of train in proportion."""
    rng = generator_for("evaluate", "labels", config.seed)
    labels = torch.cat([train[stratified_rows(train, rows, rng)] for _ in range(replicates)])
    images = generate(generator, labels, config.seed, config.micro_batch, device)
    return _embed(battery, images, labels, config, device)


@torch.no_grad()
def sample_grid(
    generator: nn.Module, dataset: Dataset, seed: int, micro_batch: int, device: torch.device | str
) -> UInt8[np.ndarray, "H W c"]:
    """One row a class (of many, some evenly spaced), the same noise at every call."""
    most, columns = ROOM[max(dataset.image_shape[1:]) > LARGE]
    labels = spaced(torch.arange(dataset.num_classes), most).repeat_interleave(columns)
    noise = normal_rows(slice(0, len(labels)), generator.noise_shape, "grid", seed)  # type: ignore[arg-type]
    parts = zip(noise.split(micro_batch), labels.split(micro_batch), strict=True)
    images = torch.cat([generator(z.to(device), c.to(device)).float().cpu() for z, c in parts])
    return image_grid(images.clamp(0, 1), columns)


def spaced(classes: Int64[Tensor, " k"], most: int) -> Int64[Tensor, " m"]:
    """At most `most` of the classes, from the first to the last."""
    steps = torch.linspace(0, len(classes) - 1, min(most, len(classes)), dtype=torch.float64)
    return classes[steps.round().long()]


def _gallery(generated: Sample, real: Real, per_class: int) -> dict[str, NDArray]:
    """Up to `per_class` generated and test images a class, sorted by class, and the nearest train images.

    Of many classes some, evenly spaced; of large images fewer.
    """
    large = max(generated.images.shape[2:]) > LARGE
    most, few = ROOM[large]
    classes = spaced(generated.labels.unique(), most)
    per_class = min(per_class, few) if large else per_class

    def chosen(labels: Tensor) -> Tensor:
        return torch.cat([(labels == label).nonzero().flatten()[:per_class] for label in classes])

    def pixels(images: Tensor) -> NDArray[np.uint8]:
        return (images * 255).round().to(torch.uint8).numpy()

    shown, beside = chosen(generated.labels), chosen(real.test.labels)
    images = generated.images[shown]
    distance, index = nearest_neighbours(images.flatten(1), real.train.images.flatten(1))
    return {
        "generated": pixels(images),
        "generated_labels": generated.labels[shown].numpy(),
        "real": pixels(real.test.images[beside]),
        "real_labels": real.test.labels[beside].numpy(),
        "neighbours": pixels(real.train.images[index]),
        "neighbour_distance": distance.numpy().astype(np.float32),
    }
