"""A folder or an archive of images against a real side: features on disk, scores, pictures.

Letters: n images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from irdm.data.base import Shape, Split
from irdm.data.checks import beforehand, check_judged
from irdm.data.image_source import ImageSource, printable
from irdm.data.images import pictures_like
from irdm.distributed import Ranks
from irdm.evaluation.judging import judge
from irdm.evaluation.pictures import closest_pairs, gallery, write_samples
from irdm.evaluation.result import RESULT, Result, evaluate_tables, write_result
from irdm.evaluation.sensitivity import Sensitivity
from irdm.files import locked, visible
from irdm.metrics.base import EvaluationConfig
from irdm.metrics.score import Score
from irdm.metrics.tables import Real, Table
from irdm.metrics.text_scorer import TextScorer
from irdm.progress import Say, silent
from irdm.store import FeatureStore, build_store

FEATURES = "features"


def evaluate_source(
    source: ImageSource,
    real: Real,
    encoders: Mapping[str, nn.Module],
    out: Path,
    *,
    config: EvaluationConfig | None = None,
    image_shape: Shape,
    reference: Mapping[str, Any],
    missing: Sequence[str] = (),
    pictures: Split,
    ladder: Callable[[], Sensitivity | None] = lambda: None,
    prompts: Sequence[str] | None = None,
    scorers: Sequence[TextScorer] = (),
    device: str = "cpu",
    ranks: Ranks | None = None,
    command: str | None = None,
    progress: Say | None = None,
) -> Result | None:
    """Judge the images of a source and write `out/result.json` and `out/samples.npz`; features stay in `out/features`.

    Interrupted or killed, the same call goes on where it was. Under torchrun every rank calls this, and all embed; the
    main rank judges and returns the result, the others None. The micro-batch and the ranks change the numbers by no
    more than rounding.

    Args:
        source: the images; of any size, since each is cropped and resized as the real ones were.
        real: the real side, under these encoders.
        encoders: on the device.
        out: a new directory, or that of the same evaluation.
        config: how to judge.
        image_shape: of the real images.
        reference: what the result says of the real side: name, train, val, size.
        missing: encoders of the reference that are left out; every label then says "(partial)".
        pictures: held-out images to show beside the judged ones.
        ladder: gives that of the real side.
        prompts: the text of each image, in the order of `source.names`.
        scorers: PickScore, CLIPScore or both; needed with prompts.
        device: where to compute.
        ranks: this process among its peers.
        command: what the user typed, for the report.
        progress: receives a line of text now and then.

    Raises:
        ValueError: for fewer than 50 images or fewer different ones, prompts that are not one an image, an image that
            cannot be used (each is named), an `out` that holds something else or that another process is writing.
        OSError: when the disk is full or cannot be written; what is finished stays.
    """
    began, say, ranks, out = time.monotonic(), progress or silent, ranks or Ranks(), Path(out)
    config = config or EvaluationConfig()
    if prompts is not None and (not scorers or len(prompts) != len(source)):
        raise ValueError(f"Got {len(prompts)} prompts for {len(source)} images; give one an image, and a scorer.")
    split = pictures_like(source, image_shape)
    with claimed_for(source, out, ranks, progress):
        notes = beforehand(source, image_shape, len(real.val))
        for note in notes:
            say(note)
        store = stored_features(
            split, encoders, real.identity["encoders"], out, config, device=device, ranks=ranks, progress=progress
        )
        embedded = time.monotonic() - began
        order = store.index.argsort()  # as the source has them, so that draws are those of the same images elsewhere
        whole = Table({name: store[name] for name in encoders}, store.conditions, split.resized, store.thumbnails)
        generated = whole.only(order)
        scores = judge(generated, real, config, device=device, ranks=ranks, progress=progress)
        if not ranks.is_main:
            return None
        more: dict[str, Score] = {}
        for scorer in scorers if prompts else ():
            say(scorer.name)
            shown = (_picture(pixels) for pixels in source.decoded(range(len(source))))
            more |= scorer.summary(scorer.scores(shown, prompts or (), config.micro_batch), seed=config.seed)
        result = evaluate_tables(
            generated,
            real,
            config,
            source={"path": printable(str(source.path)), "images": len(source), "fingerprint": split.fingerprint},
            reference=reference,
            missing=missing,
            warned=notes,
            scores=scores,
            more=more,
            prompts=prompts,
            ladder=ladder(),
            device=device,
            progress=progress,
            seeds={"evaluation": config.seed},
            command=command,
        )
        shown = gallery(split, pictures, config.gallery, config.seed) | closest_pairs(result.scores, generated, real)
        write_samples(out / "samples.npz", shown)
        spent = {"embed": embedded, "total": time.monotonic() - began}
        result = result.model_copy(update={"seconds": spent})
        write_result(out / RESULT, result)
        return result


@contextmanager
def claimed_for(source: ImageSource, out: Path, ranks: Ranks, progress: Say | None) -> Iterator[None]:
    """Hold `out` for judging these images; other ranks wait until the main one has it, and fail where it fails.

    Raises ValueError for images that cannot be judged, and an `out` that is something else or in use.
    """
    with ExitStack() as held:
        with ranks.together():
            if ranks.is_main:
                check_judged(source, progress)
                _refuse_foreign(out)
                held.enter_context(locked(out, "evaluated"))
        yield


def stored_features(
    split: Split,
    encoders: Mapping[str, nn.Module],
    identity: Any,
    out: Path,
    config: EvaluationConfig,
    *,
    device: str,
    ranks: Ranks,
    progress: Say | None,
) -> FeatureStore:
    """The features of judged images, in `out/features`; `identity` names at least these encoders."""
    return build_store(
        split,
        encoders,
        out / FEATURES,
        seed=config.seed,
        micro_batch=config.micro_batch,
        device=device,
        ranks=ranks,
        progress=progress,
        identity={name: identity[name] for name in encoders},
    )


def _refuse_foreign(out: Path) -> None:
    """Raises ValueError when `out` holds anything but an evaluation."""
    there = visible(out)
    if (out.exists() and not out.is_dir()) or (there and FEATURES not in there and RESULT not in there):
        raise ValueError(f"{out} exists and is no evaluation; choose an empty or a new directory.")


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
