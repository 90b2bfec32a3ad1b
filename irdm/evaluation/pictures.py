"""Pictures beside the numbers: some judged images, real ones, and the closest to train.

Letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from irdm.data.base import Split
from irdm.files import replaced
from irdm.metrics.score import Score
from irdm.metrics.tables import Real, Table
from irdm.ops.sampling import generator_for

LARGE = 64  # pixels a side above which fewer images are shown
ROOM = {False: (20, 10), True: (12, 5)}  # groups, and images of each, of images that are (not) large

SIDES = ("judged", "copied", "fresh", "usual")
"""Pictures of a page's pairs: judged images beside the train images they come alarmingly near, and typical fresh real
images beside theirs."""


def gallery(generated: Split, real: Split | None, per_class: int = 10, seed: int = 0) -> dict[str, NDArray]:
    """Images of each class, of many classes of some evenly spaced; without classes, random ones; of captions, random
    ones beside real images of the same captions as far as there are any.

    Args:
        generated: the judged images.
        real: held-out images; None where there are none.
        per_class: images of a class; of large images at most five.
        seed: of the choice.

    Returns:
        `generated` and `real`, uint8 [n, c, h, w], with `generated_captions` and `real_captions`, texts.
    """
    rows = _chosen(generated, per_class, seed)
    images = _pixels(generated.read(rows))
    arrays = {"generated": images, "generated_captions": _texts(generated.conditions[rows].captions())}
    if real is None:
        return arrays | {"real": images[:0], "real_captions": _texts([])}
    beside = _chosen(real, per_class, seed)
    if generated.conditions.spec.free_text and real.conditions.spec.free_text:
        beside = _of_captions(real, arrays["generated_captions"].tolist(), beside)
    return arrays | {"real": _pixels(real.read(beside)), "real_captions": _texts(real.conditions[beside].captions())}


def closest_pairs(scores: Mapping[str, Score], generated: Table, real: Real) -> dict[str, NDArray]:
    """The pairs that the most alarming encoder of `near_copies` names, as thumbnails; {} where there are none.

    Returns:
        SIDES, uint8 [k, c, h, w]; `judged_ratio` and `fresh_ratio` float64 [k], how alarming each is (0 for a copy);
        `judged_share` [k], the share of fresh real images that are as near to train.
    """
    found = scores["near_copies"].mean if "near_copies" in scores else None
    tables = (generated.thumbnails, real.train.thumbnails, real.val.thumbnails)
    if found is None or any(table is None or table.shape[1] not in (1, 3) for table in tables):
        return {}
    closest, typical = (np.array(found.notes[name], dtype=np.float64) for name in ("closest", "typical"))
    rows = (closest[:, 0], closest[:, 1], typical[:, 0], typical[:, 1])
    sources = (generated.thumbnails, real.train.thumbnails, real.val.thumbnails, real.train.thumbnails)
    pictures = {
        side: source[torch.from_numpy(row).long()].cpu().numpy()
        for side, source, row in zip(SIDES, sources, rows, strict=True)
        if source is not None
    }
    return pictures | {"judged_ratio": closest[:, 2], "judged_share": closest[:, 3], "fresh_ratio": typical[:, 2]}


def write_samples(path: Path, arrays: dict[str, NDArray]) -> None:
    """Write a gallery as .npz, without pickles."""
    with replaced(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def _chosen(split: Split, per_class: int, seed: int) -> Int64[Tensor, " n"]:
    """Rows to show, class by class."""
    groups, most = ROOM[max(split.image_shape[1:]) > LARGE]
    each, strata = min(per_class, most), None if split.conditions.spec.free_text else split.conditions.strata
    order = torch.randperm(len(split), generator=generator_for("gallery", seed))
    if strata is None:
        return order[: split.at_once(each * each)].sort().values
    there = strata.cpu().unique()
    steps = torch.linspace(0, len(there) - 1, min(groups, len(there)), dtype=torch.float64).round().long()
    rows = torch.cat([order[strata.cpu()[order] == stratum][:each].sort().values for stratum in there[steps]])
    return rows[:: -(-len(rows) // split.at_once(len(rows)))]


def _of_captions(real: Split, wanted: Sequence[str], others: Int64[Tensor, " k"]) -> Int64[Tensor, " n"]:
    """A row of each wanted caption, and others in place of those that are not there; at most as many as are wanted."""
    left: dict[str, list[int]] = {}
    for row, caption in enumerate(_texts(real.conditions.captions()).tolist()):
        left.setdefault(caption, []).append(row)
    found = [left[caption].pop(0) if left.get(caption) else None for caption in wanted]
    spare = iter(row for row in others.tolist() if row not in found)
    rows = [row if row is not None else next(spare, None) for row in found]
    return torch.tensor([row for row in rows if row is not None], dtype=torch.int64)


def _pixels(images: Tensor) -> UInt8[np.ndarray, "n c h w"]:
    return (images * 255).round().to(torch.uint8).numpy()


def _texts(captions: Sequence[str]) -> NDArray:
    """Fixed-width unicode; names that are no unicode are written as they are printed."""
    return np.array([text.encode("utf-8", "backslashreplace").decode() for text in captions] or [""][:0], dtype=np.str_)
