"""Draw images from a trained run and write them as one picture, as files, or as arrays.

n images, c channels, h height, w width.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from irdm.against import judged_images
from irdm.data.captioned import CAPTIONS
from irdm.evaluation import EvaluationConfig
from irdm.files import visible, write_atomic
from irdm.generate import Drawn
from irdm.images import image_grid, save_png
from irdm.run import load_run

MANY = 20  # classes; more than that are not all drawn unless they are asked for
EACH = 10  # images of a class when no count is given


def write_grid(path: Path, images: Drawn, micro_batch: int, columns: int) -> None:
    """One PNG; a column a class when the classes take turns and there are 2 to 20, else about square."""
    columns = columns if 2 <= columns <= MANY else math.ceil(math.sqrt(len(images)))
    save_png(path, image_grid(torch.cat(list(images.blocks(micro_batch))), columns))


def write_files(path: Path, images: Drawn, micro_batch: int, columns: int) -> None:
    """A folder of PNGs in their own size: one folder a class, or one for all with captions.jsonl, as
    `irdm.data.captioned` reads it. Raises ValueError when the folder has files.
    """
    if path.exists() and (not path.is_dir() or visible(path)):
        raise ValueError(f"{path} is not an empty folder; its files would mix with these. Give another --out.")
    each = (image for block in images.blocks(micro_batch) for image in block)
    captions, free_text = images.conditions.captions(), images.conditions.spec.free_text
    for number, (image, caption) in enumerate(zip(each, captions, strict=True)):
        named = caption and not free_text
        folder = path / re.sub(r"[^\w.-]+", "-", caption).strip(".") if named else path
        save_png(folder / f"{number:05d}.png", image_grid(image[None], columns=1, scale=1))
    if free_text:
        rows = [{"file_name": f"{number:05d}.png", "caption": caption} for number, caption in enumerate(captions)]
        write_atomic(path / CAPTIONS, "".join(json.dumps(row) + "\n" for row in rows))


def write_npz(path: Path, images: Drawn, micro_batch: int, columns: int) -> None:
    """One file with `images` uint8 [n, c, h, w] and the tensors of the conditions, such as `labels` int64 [n]."""
    pixels = torch.cat([(block * 255).round().to(torch.uint8) for block in images.blocks(micro_batch)])
    buffer = io.BytesIO()
    state = {name: tensor.numpy() for name, tensor in images.conditions.state.items()}
    np.savez_compressed(buffer, images=pixels.numpy(), **state)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


WRITERS: dict[str, tuple[str, Callable[[Path, Drawn, int, int], None]]] = {
    "grid": (".png", write_grid),
    "files": ("", write_files),
    "npz": (".npz", write_npz),
}


def sample_run(
    run: Path,
    classes: Sequence[str] | None = None,
    count: int | None = None,
    seed: int = 0,
    format: str = "grid",
    out: Path | None = None,
    device: str | None = None,
    judged: bool = False,
) -> Path:
    """Draw `count` images from a run's averaged weights and write them; returns where.

    The classes (default: all), or any texts for a run of captions (default: some of its own), take turns. Without a
    count each gets ten, and of more than 20 classes 20 are drawn, evenly spaced; without classes there are a hundred
    images. `judged` draws the very images that the run was judged on in place of all that.

    Raises ValueError for classes the run does not know, texts that it cannot read, a count below 1, or a run that
    cannot be opened.
    """
    if count is not None and count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 image.")
    loaded = load_run(run, device)
    shown = loaded.spec.each(1, None if count else MANY).captions() if loaded.spec.width else []
    wanted = list(classes) if classes else shown
    if judged:
        images, name = judged_images(loaded), "judged"
    else:
        count = count or EACH * (len(wanted) or EACH)
        conditions = loaded.spec.named(wanted, count) if wanted else loaded.spec.each(count)
        for note in loaded.generator.look_at(conditions):
            print(note)
        images, name = loaded.drawn(conditions, seed), f"seed-{seed}"
    suffix, write = WRITERS[format]
    path = out or run / "samples" / f"{name}{suffix}"
    micro_batch = (loaded.config.evaluation or EvaluationConfig()).micro_batch
    write(path, images, micro_batch, 0 if judged else len(wanted))
    return path
