"""Judge a generator: images -> encoders -> features -> metrics. Shares only `ops` and `features` with training.

Letters: n rows, c channels, h height, w width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from irdm.data.base import Dataset, Split
from irdm.encoders.base import Battery
from irdm.features import extract
from irdm.metrics import DIRECTIONS, METRICS, EvaluationConfig, Real, Sample
from irdm.metrics.base import MIN_ROWS, stratified_rows
from irdm.metrics.neighbours import nearest_neighbours
from irdm.metrics.sliced_wasserstein import SlicedBank
from irdm.ops.sampling import generator_for, normal_rows

__all__ = ["Evaluation", "EvaluationConfig", "QuickCheck", "evaluate", "generate"]

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
    real = _embed_real(battery, dataset, config, config.rows, device)
    say(f"drawing {config.replicates} x {len(real.val)} images")
    generated = _draw(generator, battery, dataset, config, len(real.val), config.replicates, device)
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
        self.battery, self.dataset, self.config, self.device = battery, dataset, config, device
        real = _embed_real(battery, dataset, config, config.quick_rows, device)
        self.rows = len(real.val)
        self.bank = SlicedBank(real.train.features, config.quick_directions, config.seed)
        self.real_distances = self.bank.distances(real.val.features)

    def __call__(self, generator: nn.Module) -> dict[str, float]:
        """{"held_in": ratio, "held_out": ratio}; a group that the battery does not have is left out."""
        drawn = _draw(generator, self.battery, self.dataset, self.config, self.rows, 1, self.device)
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


def _embed_real(
    battery: Battery, dataset: Dataset, config: EvaluationConfig, most: int, device: torch.device | str
) -> Real:
    """The real side with at most `most` rows a split, and as many of val as of test."""
    names = sorted(battery.encoders)
    if sorted(battery.held_in + battery.held_out) != names:
        raise ValueError(f"The battery divides {battery.held_in} + {battery.held_out}, but its encoders are {names}.")
    n = min(most, len(dataset.val.labels), len(dataset.test.labels))
    if n < MIN_ROWS or len(dataset.train.labels) < 2 * MIN_ROWS:
        sizes = {name: len(getattr(dataset, name).labels) for name in ("train", "val", "test")}
        raise ValueError(
            f"The splits have {sizes} rows; an evaluation needs at least {2 * MIN_ROWS} in train and {MIN_ROWS} in "
            "each of val and test, and hundreds to mean something. Add images or change the split."
        )

    def embed(name: str, count: int) -> Sample:
        split: Split = getattr(dataset, name)
        images, labels = split.images, split.labels
        if count < len(labels):
            rows = stratified_rows(labels, count, generator_for("evaluate", "rows", name, config.seed))
            images, labels = images[rows], labels[rows]
        return _embed(battery, images, labels, config, device)

    return Real(embed("train", most), embed("val", n), embed("test", n), tuple(battery.held_out))


def _draw(
    generator: nn.Module,
    battery: Battery,
    dataset: Dataset,
    config: EvaluationConfig,
    rows: int,
    replicates: int,
    device: torch.device | str,
) -> Sample:
    """Replicates of `rows` generated images, each with the classes of train in proportion."""
    rng = generator_for("evaluate", "labels", config.seed)
    train = dataset.train.labels
    labels = torch.cat([train[stratified_rows(train, rows, rng)] for _ in range(replicates)])
    images = generate(generator, labels, config.seed, config.micro_batch, device)
    return _embed(battery, images, labels, config, device)


def _gallery(generated: Sample, real: Real, per_class: int) -> dict[str, NDArray]:
    """Up to `per_class` generated and test images of each class, sorted by class, and the nearest train images."""

    def chosen(labels: Tensor) -> Tensor:
        return torch.cat([(labels == label).nonzero().flatten()[:per_class] for label in labels.unique()])

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
