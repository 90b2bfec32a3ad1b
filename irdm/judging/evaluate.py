"""Images from anywhere against a reference: one pass through every encoder, then every metric.

Letters: n images.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor, nn

from irdm import __version__
from irdm.checkpoint import write_atomic
from irdm.data.sources import ImageSource
from irdm.distributed import Ranks
from irdm.judging.judge import Judge
from irdm.metrics.pickscore import PickScore, pickscore
from irdm.ops.sampling import generator_for, sample_indices
from irdm.store import build_store

MIN_IMAGES = 50  # below this the jackknife's folds and the balls of five neighbours say nothing
SHEET = 60  # images kept for the report
CONTROL_MARGIN = 0.15  # a real control further from 1 than this is pointed out
PROBED = 256  # images whose own size is looked at


def evaluate_source(
    source: ImageSource,
    judge: Judge,
    out: Path,
    *,
    encoders: Mapping[str, nn.Module] | None = None,
    weights: Path | None = None,
    seed: int = 0,
    micro_batch: int = 64,
    prompts: Sequence[str] | None = None,
    scorer: PickScore | None = None,
    ranks: Ranks | None = None,
    command: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Judge the images of a source and write `out/result.json` and `out/samples.npz`; features stay in `out/features`.

    Interrupted or killed, the same call goes on where it was. Under torchrun every rank calls this, and all embed; the
    main rank judges and returns the result, the others an empty one. The micro-batch and the ranks change the numbers
    by no more than rounding.

    Args:
        source: the images; of any size, since each is cropped and resized as the reference's own were.
        judge: the reference.
        out: a new directory, or that of the same evaluation.
        encoders: the reference's encoders on the judge's device; None loads them all. Fewer than all make every
            aggregate a partial one, which its name says.
        weights: folder of the weights of pretrained encoders.
        seed: of the order of the rows, and of every draw made here.
        micro_batch: images that are decoded and embedded at once.
        prompts: the text of each image, in the order of `source.names`, for PickScore.
        scorer: what gives PickScores; needed with prompts.
        ranks: this process among its peers.
        command: what the user typed, for the report.
        progress: receives a line of text now and then.

    Raises:
        ValueError: for fewer than 50 images, prompts that are not one an image, encoders that are not the reference's,
            an image that cannot be used (each is named), or an `out` that holds something else.
        OSError: when the disk is full or cannot be written; what is finished stays.
    """
    began, say, ranks, out = time.monotonic(), progress or (lambda text: None), ranks or Ranks(), Path(out)
    if len(source) < MIN_IMAGES:
        raise ValueError(
            f"{source.path} holds {len(source)} image(s); an evaluation needs at least {MIN_IMAGES}, and thousands to "
            "mean something."
        )
    if prompts is not None and (scorer is None or len(prompts) != len(source)):
        raise ValueError(f"Got {len(prompts)} prompts for {len(source)} images; give one an image, and a scorer.")
    encoders = dict((judge.battery(weights=weights).encoders if encoders is None else encoders).items())
    judge.check(encoders, weights)
    chosen = judge.chosen(list(encoders))
    sizes = _sizes(source, judge, seed)
    if sizes["note"]:
        say(sizes["note"])
    store = build_store(
        source,
        {name: encoders[name] for name in chosen},
        _claim(out) / "features",
        size=judge.size,
        seed=seed,
        micro_batch=micro_batch,
        device=judge.device,
        ranks=ranks,
        progress=progress,
        identity={name: judge.identities[name] for name in chosen},
    )
    if not ranks.is_main:
        return {}
    scores = judge.scores({name: store[name] for name in chosen}, seed=seed, progress=progress)
    if prompts is not None and scorer is not None:
        say("PickScore")
        pictures = (
            Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in source.decoded(range(len(source)), None)
        )
        scores["pickscore"] = pickscore(scorer.scores(pictures, prompts, micro_batch), seed=seed)
    missing = [name for name in judge.names if name not in chosen]
    result = {
        "kind": "evaluation",
        "source": {"path": str(source.path), "images": len(source), "fingerprint": source.fingerprint, **sizes},
        "panel": {"encoders": list(chosen), "missing": missing, "partial": bool(missing)},
        "protocol": _protocol(judge, chosen, len(source), seed, prompts),
        "warnings": _warnings(source, judge, scores, missing, sizes["note"]),
        "reference": {"name": judge.folder.name, "path": str(judge.folder.path), **_counts(judge)},
        "seconds": time.monotonic() - began,
        "versions": _versions(),
        "command": command,
        **scores,  # each beside the protocol, where `irdm.compare` and the report look for them
    }
    _write_samples(out / "samples.npz", source, judge, seed)
    write_atomic(out / "result.json", json.dumps(result, indent=1))
    return result


def _claim(out: Path) -> Path:
    """Raises ValueError when `out` holds anything but an evaluation."""
    there = [entry.name for entry in out.iterdir()] if out.is_dir() else []
    ours = any(name == "features" or name.startswith("generated-seed-") for name in there)
    if out.exists() and (not out.is_dir() or (there and not ours)):
        raise ValueError(f"{out} exists and is no evaluation; choose an empty or a new directory.")
    return out


def _sizes(source: ImageSource, judge: Judge, seed: int) -> dict[str, Any]:
    """The images' own sizes, from a sample of them, and what is done about those that are not the reference's."""
    rows = sample_indices(len(source), PROBED, generator_for("sizes", seed))
    found = sorted({_size(source.read(row)) for row in rows.tolist()})
    side, note = judge.size, None
    if found and found != [(side, side)]:
        few = " and ".join(f"{w} x {h}" for w, h in (found if len(found) < 3 else (found[0], found[-1])))
        note = (
            f"Images are {few if len(found) < 3 else f'of {len(found)} sizes, such as {few}'}: each is centre-cropped "
            f"and resized to {side} x {side}, as those of the reference were."
        )
    return {"sizes": [list(size) for size in found[:20]], "note": note}


def _size(data: bytes | np.ndarray) -> tuple[int, int]:
    """(width, height) of an image; (0, 0) for one that cannot be read, which embedding will name."""
    if not isinstance(data, bytes):
        return data.shape[1], data.shape[0]
    try:
        with Image.open(io.BytesIO(data)) as file:
            return file.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0, 0


def _protocol(
    judge: Judge, names: Sequence[str], images: int, seed: int, prompts: Sequence[str] | None
) -> dict[str, Any]:
    """What two results must share to be compared: everything that decides a score but the images themselves."""
    plan = judge.folder.plan
    return {
        "reference": judge.folder.address,
        "encoders": {name: judge.identities[name] for name in names},
        "held_out": [name for name in names if name in judge.held_out],
        "preprocessing": plan["preprocessing"],
        "judging": plan["judging"],
        "images": images,
        "seed": seed,
        "prompts": prompts and hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
    }


def _warnings(
    source: ImageSource, judge: Judge, scores: Mapping[str, Mapping[str, Any]], missing: list[str], note: str | None
) -> list[str]:
    """What a reader must know beside the numbers."""
    found = [note] if note else []
    if missing:
        found.append(
            f"Partial: {len(judge.names) - len(missing)} of the reference's {len(judge.names)} encoders were asked "
            f"for, without {', '.join(missing)}. No mean here compares with one over the whole panel."
        )
    rows = scores["sw_ratio"]["rows"]
    if rows["draw"] < rows["full"]:
        found.append(
            f"{len(source)} images: the ratios compare {rows['draw']} at a time with as many fresh real ones instead "
            f"of {rows['full']}: the intervals are wider, and small differences are not seen."
        )
    control = scores["sw_ratio"]["real_control"]
    if abs(control - 1) > CONTROL_MARGIN:
        found.append(
            f"Fresh real images themselves score {control:.2f} here, not 1.00: with {_counts(judge)['val']} val images "
            "the unit of the ratios is that uncertain. Compare scores against this reference with each other, or build "
            "one with more val images."
        )
    looked, there = scores["copies"]["rows"]["train"], _counts(judge)["train"]
    if looked < there:
        found.append(
            f"Closeness, authenticity and copies compare with {looked} random train images of {there}: a copy of one "
            "of the others is not seen."
        )
    singular = [n for n, row in scores["frechet_distance"]["per_encoder"].items() if row["warning"]]
    if singular:
        found.append(
            f"Frechet distances of {', '.join(singular)}: there are fewer images than dimensions on one side, so they "
            "are biased upwards; compare them at equal numbers of images only."
        )
    return found


def _counts(judge: Judge) -> dict[str, Any]:
    plan = judge.folder.plan
    return {"panel": plan["panel"], "train": plan["train"]["count"], "val": plan["val"]["count"], "size": judge.size}


def _versions() -> dict[str, str]:
    return {
        "irdm": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "pillow": PIL.__version__,
    }


def sheet(source: ImageSource, size: int, seed: int) -> Tensor:
    """Some images of a source drawn at random, cropped to `size`: uint8 [at most 60, 3, size, size]."""
    rows = sample_indices(len(source), SHEET, generator_for("sheet", seed)).sort().values
    return torch.stack(list(islice(source.decoded(rows.tolist(), size), SHEET)))


def _write_samples(path: Path, source: ImageSource, judge: Judge, seed: int) -> None:
    buffer = io.BytesIO()
    images = {"generated": sheet(source, judge.size, seed), "real": judge.samples()}
    np.savez_compressed(buffer, **{name: pixels.numpy() for name, pixels in images.items()})  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())
