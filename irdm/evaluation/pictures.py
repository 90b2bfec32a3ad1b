"""Pictures beside the numbers: some judged images, real ones, and the train images they resemble most.

Letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from irdm.data.base import Split
from irdm.files import replaced
from irdm.metrics.neighbours import nearest_neighbours
from irdm.ops.sampling import generator_for

LARGE = 64  # pixels a side above which fewer images are shown
ROOM = {False: (20, 10), True: (12, 5)}  # groups, and images of each, of images that are (not) large

Pictures = tuple[UInt8[Tensor, "n c h w"], Sequence[str]]


def gallery(
    generated: Split, real: Split | Pictures, train: Split | None = None, per_class: int = 10, seed: int = 0
) -> dict[str, NDArray]:
    """Images of each class, of many classes of some evenly spaced; without classes, random ones.

    Args:
        generated: the judged images.
        real: held-out images, or some of them as 8-bit pictures with captions.
        train: training images; None leaves the neighbours out.
        per_class: images of a class; of large images at most five.
        seed: of the choice.

    Returns:
        `generated` and `real`, uint8 [n, c, h, w], with `generated_captions` and `real_captions`, texts; and with train
        the nearest of its images to each generated one, by pixels: `neighbours` and `neighbour_distance`.
    """
    rows = _chosen(generated, per_class, seed)
    images = generated.read(rows)
    arrays = {"generated": _pixels(images), "generated_captions": _texts(generated.conditions[rows].captions())}
    if isinstance(real, Split):
        beside = _chosen(real, per_class, seed)
        arrays["real"] = _pixels(real.read(beside))
        arrays["real_captions"] = _texts(real.conditions[beside].captions())
    else:
        arrays["real"], arrays["real_captions"] = real[0].numpy(), _texts(real[1])
    if train is not None:
        distance, index = (found[:, 0] for found in nearest_neighbours(images.flatten(1), _PixelRows(train)))
        arrays["neighbours"] = _pixels(train.read(index))
        arrays["neighbour_distance"] = distance.numpy().astype(np.float32)
    return arrays


def write_samples(path: Path, arrays: dict[str, NDArray]) -> None:
    """Write a gallery as .npz, without pickles."""
    with replaced(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def _chosen(split: Split, per_class: int, seed: int) -> Int64[Tensor, " n"]:
    """Rows to show, class by class."""
    groups, most = ROOM[max(split.image_shape[1:]) > LARGE]
    each, strata = min(per_class, most), split.conditions.strata
    order = torch.randperm(len(split), generator=generator_for("gallery", seed))
    if strata is None:
        return order[: each * each].sort().values
    there = strata.cpu().unique()
    steps = torch.linspace(0, len(there) - 1, min(groups, len(there)), dtype=torch.float64).round().long()
    return torch.cat([order[strata.cpu()[order] == stratum][:each].sort().values for stratum in there[steps]])


def _pixels(images: Tensor) -> UInt8[np.ndarray, "n c h w"]:
    return (images * 255).round().to(torch.uint8).numpy()


def _texts(captions: Sequence[str]) -> NDArray:
    """Fixed-width unicode; names that are no unicode are written as they are printed."""
    return np.array([text.encode("utf-8", "backslashreplace").decode() for text in captions] or [""][:0], dtype=np.str_)


class _PixelRows:
    """Images as `irdm.ops.rows.Rows` [n, c h w], read as they are asked for."""

    def __init__(self, split: Split):
        self._split = split
        self.shape = (len(split), int(np.prod(split.image_shape)))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        rows = torch.arange(len(self))[index] if isinstance(index, slice) else index
        return self._split.read(rows).flatten(1)
