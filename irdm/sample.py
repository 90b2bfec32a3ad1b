"""Draw images from a trained run and write them as one picture, as files, or as arrays.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from irdm.checkpoint import write_atomic
from irdm.images import image_grid, save_png
from irdm.ops.sampling import generator_for


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
    shape: tuple[int, ...] = generator.noise_shape  # type: ignore[assignment]
    noise = torch.stack([torch.randn(shape, generator=generator_for("sample", seed, i)) for i in range(len(labels))])
    parts = zip(noise.split(micro_batch), labels.split(micro_batch), strict=True)
    images = torch.cat([generator(z.to(device), c.to(device)).float().cpu() for z, c in parts])
    if bad := int((~images.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(f"The generator returned NaN or infinity in {bad} of {len(images)} images; training diverged.")
    return images.clamp(0, 1)


def turns(labels: Sequence[int], count: int) -> Int64[Tensor, " n"]:
    """`count` labels, the given ones taking turns: a longer draw begins with the shorter one."""
    return torch.tensor(labels, dtype=torch.int64).repeat(math.ceil(count / len(labels)))[:count]


def write_grid(path: Path, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], classes: int) -> None:
    """One PNG; a column a class when the labels take turns among 2 to 20 classes, else about square."""
    save_png(path, image_grid(images, classes if 2 <= classes <= 20 else math.ceil(math.sqrt(len(images)))))


def write_files(path: Path, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], classes: int) -> None:
    """A folder of PNGs in the generator's own size: 00000-label-3.png. Raises ValueError when the folder has files."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not an empty folder; its files would mix with these. Give another --out.")
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        save_png(path / f"{i:05d}-label-{label}.png", image_grid(image[None], columns=1, scale=1))


def write_npz(path: Path, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"], classes: int) -> None:
    """One file with `images` uint8 [n, c, h, w] and `labels` int64 [n]."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=(images * 255).round().to(torch.uint8).numpy(), labels=labels.numpy())
    write_atomic(path, buffer.getvalue())


WRITERS: dict[str, tuple[str, Callable[[Path, Tensor, Tensor, int], None]]] = {
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
    """Draw `count` images (default: ten a label) from a run's averaged weights and write them; returns where.

    Raises ValueError for labels the run does not know, a count below 1, or a run that cannot be opened.
    """
    from irdm.run import load_run

    if count is not None and count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 image.")
    loaded = load_run(run)
    classes = loaded.dataset.num_classes
    chosen = list(range(classes)) if labels is None else list(labels)
    if unknown := sorted({label for label in chosen if not 0 <= label < classes}):
        raise ValueError(f"{run} has the labels 0 to {classes - 1}, not {', '.join(map(str, unknown))}.")
    drawn = turns(chosen, count or 10 * len(chosen))
    images = sample(loaded.generator, drawn, seed, loaded.config.evaluation.micro_batch, loaded.device)
    suffix, write = WRITERS[format]
    path = out or run / "samples" / f"seed-{seed}{suffix}"
    write(path, images, drawn, len(chosen))
    return path
