"""Draw images from a trained run and write them as one picture, as files, or as arrays.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from irdm.checkpoint import write_atomic
from irdm.evaluate import EvaluationConfig, spaced
from irdm.images import image_grid, save_png
from irdm.ops.sampling import generator_for

MANY = 20  # classes; more than that are not all drawn unless they are asked for


@torch.no_grad()
def sample(
    generator: nn.Module,
    labels: Int64[Tensor, " n"],
    seed: int,
    micro_batch: int = 256,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "n c h w"]:
    """One image a label, in [0, 1], on the CPU. Image i depends, to rounding, on the seed, i and its label alone.

    Raises ValueError when the generator returns NaN or infinity.
    """
    return torch.cat(list(draw(generator, labels, seed, micro_batch, device)))


def draw(
    generator: nn.Module, labels: Int64[Tensor, " n"], seed: int, micro_batch: int, device: torch.device | str
) -> Iterator[Float[Tensor, "k c h w"]]:
    """The images of `sample`, a micro-batch at a time, so that any number of them can be written."""
    shape: tuple[int, ...] = generator.noise_shape  # type: ignore[assignment]
    for start in range(0, len(labels), micro_batch):
        chosen = labels[start : start + micro_batch]
        rows = range(start, start + len(chosen))
        noise = torch.stack([torch.randn(shape, generator=generator_for("sample", seed, i)) for i in rows])
        with torch.no_grad():
            images = generator(noise.to(device), chosen.to(device)).float().cpu()
        if bad := int((~images.isfinite()).flatten(1).any(1).sum()):
            raise ValueError(f"The generator returned NaN or infinity in {bad} of {len(images)} images; it diverged.")
        yield images.clamp(0, 1)


def turns(labels: Sequence[int], count: int) -> Int64[Tensor, " n"]:
    """`count` labels, the given ones taking turns: a longer draw begins with the shorter one."""
    return torch.tensor(labels, dtype=torch.int64).repeat(math.ceil(count / len(labels)))[:count]


def write_grid(path: Path, images: Iterable[Tensor], labels: Int64[Tensor, " n"], classes: int) -> None:
    """One PNG; a column a class when the labels take turns among 2 to 20 classes, else about square."""
    columns = classes if 2 <= classes <= MANY else math.ceil(math.sqrt(len(labels)))
    save_png(path, image_grid(torch.cat(list(images)), columns))


def write_files(path: Path, images: Iterable[Tensor], labels: Int64[Tensor, " n"], classes: int) -> None:
    """A folder of PNGs in the generator's own size: 00000-label-3.png. Raises ValueError when the folder has files."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not an empty folder; its files would mix with these. Give another --out.")
    each = (image for chunk in images for image in chunk)
    for i, (image, label) in enumerate(zip(each, labels.tolist(), strict=True)):
        save_png(path / f"{i:05d}-label-{label}.png", image_grid(image[None], columns=1, scale=1))


def write_npz(path: Path, images: Iterable[Tensor], labels: Int64[Tensor, " n"], classes: int) -> None:
    """One file with `images` uint8 [n, c, h, w] and `labels` int64 [n]."""
    pixels = torch.cat([(chunk * 255).round().to(torch.uint8) for chunk in images])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=pixels.numpy(), labels=labels.numpy())
    write_atomic(path, buffer.getvalue())


WRITERS: dict[str, tuple[str, Callable[[Path, Iterable[Tensor], Tensor, int], None]]] = {
    "grid": (".png", write_grid),
    "files": ("", write_files),
    "npz": (".npz", write_npz),
}


def sample_run(
    run: Path,
    labels: Sequence[int] | None = None,
    count: int | None = None,
    seed: int = 0,
    format: str = "grid",
    out: Path | None = None,
) -> Path:
    """Draw `count` images from a run's averaged weights and write them; returns where.

    The labels (default: all) take turns. Without a count each gets ten, and more than 20 classes are 20, evenly spaced.

    Raises ValueError for labels the run does not know, a count below 1, or a run that cannot be opened.
    """
    from irdm.run import load_run

    if count is not None and count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 image.")
    loaded = load_run(run)
    classes = loaded.num_classes
    every = torch.arange(classes) if count else spaced(torch.arange(classes), MANY)
    chosen = every.tolist() if labels is None else list(labels)
    if unknown := sorted({label for label in chosen if not 0 <= label < classes}):
        raise ValueError(f"{run} has the labels 0 to {classes - 1}, not {', '.join(map(str, unknown))}.")
    drawn = turns(chosen, count or 10 * len(chosen))
    judging = loaded.config.evaluation or EvaluationConfig()
    images = draw(loaded.generator, drawn, seed, judging.micro_batch, loaded.device)
    suffix, write = WRITERS[format]
    path = out or run / "samples" / f"seed-{seed}{suffix}"
    write(path, images, drawn, len(chosen))
    return path
