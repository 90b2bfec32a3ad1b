"""Images against published statistics: the mean and covariance of somebody's real features, without the images.

Such a file gives a Frechet distance (FID, for those of Inception) and nothing else: no control, since there are no
fresh real images; no ratio, no neighbours, and an interval of the judged side alone. It must have been made as the
judged images are embedded here, and nothing in it tells how.

Letters: d features.
"""

from __future__ import annotations

import math
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from irdm.data.image_source import ImageSource, printable
from irdm.data.images import own_size, pictures_like
from irdm.distributed import Ranks
from irdm.encoders.base import Encoder
from irdm.evaluation.pictures import gallery, write_samples
from irdm.evaluation.result import RESULT, Result, versions, write_result
from irdm.evaluation.source import claimed_for, stored_features
from irdm.evaluation.verdict import verdict_of
from irdm.files import sha256_of
from irdm.metrics.base import BLOCK, EvaluationConfig
from irdm.metrics.frechet_distance import NAMES
from irdm.metrics.frechet_infinity import INFINITY, extrapolated
from irdm.metrics.intervals import folds, jackknife, score_of
from irdm.metrics.score import Score
from irdm.metrics.tables import Picked
from irdm.ops.gaussian import Moments, frechet_distance, symmetric_root
from irdm.ops.rows import Rows, row_blocks

ARRAYS = {"mu", "sigma"}
ROUNDING = 1e-5  # of the largest eigenvalue: what a covariance may miss of symmetry and of being positive


@dataclass(frozen=True)
class Statistics:
    """The mean and covariance of real features."""

    path: Path
    mean: Float64[Tensor, " d"]
    covariance: Float64[Tensor, "d d"]
    sha256: str
    """Of the file."""


def is_statistics(path: Path) -> bool:
    """Whether a file is an `.npz` of `mu` and `sigma`, and not of images: a batch of ADM has both."""
    if path.suffix != ".npz" or not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    return names >= ARRAYS and not names & {"images", "arr_0"}


def open_statistics(path: Path) -> Statistics:
    """Read `mu` [d] and `sigma` [d, d], as pytorch-fid, torch-fidelity, clean-fid and EDM save them.

    Raises ValueError for a file that cannot be read, other shapes, NaN, or what no covariance can be.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(np.asarray(file[name], dtype=np.float64)) for name in ("mu", "sigma"))
    except MemoryError:
        raise
    except Exception as error:  # a damaged file leads NumPy into errors of every kind
        raise ValueError(f"{path} cannot be read as statistics, mu and sigma ({error}); fetch it again.") from error
    shapes = tuple(mean.shape), tuple(covariance.shape)
    if mean.ndim != 1 or not len(mean) or shapes[1] != (len(mean), len(mean)):
        raise ValueError(f"{path}: mu is {list(shapes[0])} and sigma {list(shapes[1])}; expected [d] and [d, d].")
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{path} holds NaN or infinity; fetch it again, or make it anew from finite features.")
    allowed = ROUNDING * covariance.abs().max().item()
    apart = (covariance - covariance.T).abs().max().item()
    if apart > allowed:
        raise ValueError(f"{path}: sigma is no covariance, it is not symmetric (numbers differ by {apart:.3g}).")
    covariance = (covariance + covariance.T) / 2
    values = torch.linalg.eigvalsh(covariance)
    if values[0].item() < -ROUNDING * values[-1].abs().item():
        raise ValueError(f"{path}: sigma is no covariance, it has the eigenvalue {values[0].item():.3g}.")
    return Statistics(path, mean, covariance, sha256_of(path))


def judge_by_statistics(
    rows: Rows, statistics: Statistics, name: str, config: EvaluationConfig, resized: str | None = None
) -> dict[str, Score]:
    """`frechet_distance` under one encoder, and under those of published metrics also `frechet_infinity`.

    Raises ValueError when the features have another number of dimensions than the statistics.
    """
    n, dim = rows.shape
    if dim != len(statistics.mean):
        raise ValueError(
            f"{statistics.path} is of {len(statistics.mean)} numbers a feature, and the encoder '{name}' gives {dim}: "
            "it was made with another one. Name that one with --panel."
        )
    mean, covariance = statistics.mean, statistics.covariance
    root = symmetric_root(covariance)

    def distance(sample: Moments) -> float:
        return frechet_distance(sample.mean.cpu(), sample.covariance.cpu(), mean, covariance, root, jitter=0.0).item()

    fold = folds(n, config.seed)
    parts = [
        Moments.of(row_blocks(Picked(rows, (fold == k).nonzero()[:, 0]), BLOCK)) for k in range(int(fold.max()) + 1)
    ]
    others = [[part for part in parts if part is not left_out] for left_out in parts]
    without = [distance(sum(rest[1:], rest[0])) for rest in others]
    value = distance(sum(parts[1:], parts[0]))
    replicates = {
        "frechet_distance": (NAMES, jackknife(value, torch.tensor(without, dtype=torch.float64))),
    }
    if name in INFINITY:
        replicates["frechet_infinity"] = INFINITY, extrapolated(distance, rows, torch.arange(n), config.seed)
    warning = (
        f"{n} images for {dim} dimensions: the covariance is singular and the bias is large." if n <= dim else None
    )
    labels = {"frechet_distance": "Frechet distance", "frechet_infinity": "Frechet distance at infinite n"}
    scores = {}
    for key, (names, found) in replicates.items():
        called = names.get(name, f"FD-{name}")
        called = f"{called} (images {resized})" if resized and name in names else called
        scores[key] = score_of(
            labels[key],
            "lower",
            f"To the statistics of {statistics.path.name}; lower is better. No fresh real images stand beside it.",
            {name: found},
            (),
            limits=(0.0, math.inf) if key == "frechet_distance" else (-math.inf, math.inf),
            details={name: {"name": called, "warning": warning}},
            means=False,
            notes={"rows": n},
        )
    return scores


def evaluate_against_statistics(
    source: ImageSource,
    statistics: Statistics,
    encoder: Encoder,
    identity: str,
    out: Path,
    *,
    config: EvaluationConfig | None = None,
    size: int | None = None,
    device: str = "cpu",
    ranks: Ranks | None = None,
    command: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Result | None:
    """Judge the images of a source as `evaluate_source` does, with statistics in the place of real images.

    Args:
        source: the images.
        statistics: what they are compared with.
        encoder: what made the statistics; on the device.
        identity: what decides its features (`encoder_identity`).
        out: a new directory, or that of the same evaluation.
        config: how to judge; its seed and micro-batch.
        size: side that images are cropped and resized to; None as they are, all of one size.
        device: where to compute.
        ranks: this process among its peers.
        command: what the user typed, for the report.
        progress: receives a line of text now and then.

    Raises:
        ValueError: for images of several sizes without a size, and as `evaluate_source` and `judge_by_statistics` do.
    """
    began, ranks, config = time.monotonic(), ranks or Ranks(), config or EvaluationConfig()
    with ranks.together():
        height, width = (size, size) if size else own_size([source])
    with claimed_for(source, out, ranks, progress):
        split, name = pictures_like(source, (3, height, width)), encoder.name
        store = stored_features(
            split, {name: encoder}, {name: identity}, out, config, device=device, ranks=ranks, progress=progress
        )
        if not ranks.is_main:
            return None
        embedded = time.monotonic() - began
        rows = Picked(store[name], store.index.argsort())
        scores = judge_by_statistics(rows, statistics, name, config, split.resized)
        warned = [
            "Statistics are no images: they give no control, so nobody knows what fresh real images would score here, "
            "no ratio, no neighbours; and the interval is of the judged images alone."
        ]
        warned += [f"Images were {split.resized} first, so this is not the published number."] if split.resized else []
        result = Result(
            verdict=verdict_of(scores),
            source={"path": printable(str(source.path)), "images": len(source), "fingerprint": split.fingerprint},
            reference={"name": statistics.path.stem, "statistics": str(statistics.path), "size": [3, height, width]},
            protocol={
                "real": {"statistics": statistics.sha256, "encoders": {name: identity}, "held_out": []},
                "settings": {"seed": config.seed},
                "images": len(source),
                "image_shape": [3, height, width],
            },
            warnings=tuple(warned),
            scores=scores,
            versions=versions(),
            seeds={"evaluation": config.seed},
            command=command,
        )
        write_samples(out / "samples.npz", gallery(split, None, config.gallery, config.seed))
        result = result.model_copy(update={"seconds": {"embed": embedded, "total": time.monotonic() - began}})
        write_result(out / RESULT, result)
        return result
