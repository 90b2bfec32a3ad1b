"""Pictures of prompts by the four-step teacher: the real side of a text-to-image run, made rather than collected.

Each prompt is drawn from several seeds, and a scorer says which pictures stay. A folder of renders is a place of
`irdm.data.captioned`:

    OUT/plan.json        what decides the pictures; written first
    OUT/part-00000/      some prompts: PNG files, captions.jsonl (file_name, caption, seed, score), manifest.json
    OUT/captions.jsonl   the rows of all parts; written last, when all is there

Letters: n images, h x w pixels.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from irdm.data.captioned import CAPTIONS, PLAN
from irdm.distributed import Ranks
from irdm.encoders.weights import weights_folder
from irdm.files import claimed, file_entry, hash_of, read_sealed, remove, sealed_folder, write_atomic
from irdm.geneval.choosing import detected_verdicts, exact_verdicts
from irdm.images import png_bytes
from irdm.progress import Meter, Say, silent

PART_IMAGES = 1024  # drawn for a part, what an interrupted render may lose
PRIME = 1_000_003  # the seed of picture k of prompt i is (seed + k) * PRIME + i

SCORERS = ("pickscore", "geneval", "exact")
Scorer = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[float]]
"""`scorer(pictures, prompts) -> scores`, one each; higher is better, and minus infinity leaves a picture out."""


Draws = Callable[[Sequence[str], Sequence[int]], Tensor]
"""`teacher(captions, seeds) -> images [n, 3, h, w]` in [0, 1]: `irdm.generators.klein_teacher.Teacher`, or another."""


def open_scorer(
    name: str,
    device: str,
    texts: Sequence[str] = (),
    file: Path | None = None,
    detector: Path | None = None,
    clip: Path | None = None,
) -> Scorer:
    """The scorer of a name, for some prompts and the file that they are from.

    `pickscore`; `geneval`, by a detector and CLIP, for prompts with tags; `exact`, for captions of the captioned world;
    or a callable of your own as `module:function`, also of a file in the working directory.

    Raises ValueError when it is not there, or cannot judge these prompts.
    """
    if name == "exact":
        return exact_verdicts(texts)
    if name == "geneval":
        assert file is not None
        return detected_verdicts(file, detector, clip, device)
    if name == "pickscore":
        from irdm.metrics.pickscore import PickScore

        place = weights_folder() / PickScore.folder
        scorer = PickScore.load(place if place.is_dir() else None, device=device)
        return lambda pictures, prompts: scorer.scores(pictures, prompts).tolist()
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"There is no scorer '{name}': give {', '.join(SCORERS)}, or a function of your own as module:function."
        )
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"The scorer '{name}' cannot be imported: {error}.") from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ValueError(f"The scorer '{name}' is a {type(found).__name__}, expected a function(pictures, prompts).")
    return cast(Scorer, found)


def render(
    prompts: Sequence[str],
    out: Path,
    teacher: Draws,
    identity: Mapping[str, Any],
    *,
    seeds: int = 1,
    top: int | None = None,
    scorer: Scorer | None = None,
    seed: int = 0,
    micro_batch: int = 8,
    ranks: Ranks | None = None,
    progress: Say | None = None,
) -> Path:
    """Draw every prompt from `seeds` seeds, keep its best `top` pictures, and write them to `out`; returns it.

    Interrupted, the same call goes on at the next part; under torchrun each rank takes parts of its own.

    Args:
        prompts: texts, each different.
        out: the folder.
        teacher: draws images.
        identity: what decides the images beside all this, and the scorer, as plain JSON.
        seeds: pictures drawn of a prompt.
        top: pictures kept of a prompt; None keeps all.
        scorer: which are best; needed for fewer than all.
        seed: the first one.
        micro_batch: images drawn at once.
        ranks: this process among its peers.
        progress: receives a line of text now and then.

    Raises:
        ValueError: for no prompt, repeated prompts, a top without a scorer, scores that are not a number a picture, a
            scorer that leaves no picture, or a folder that holds something else.
    """
    ranks, say = ranks or Ranks(), progress or silent
    kept = seeds if top is None else top
    if not prompts or len(set(prompts)) < len(prompts):
        raise ValueError(
            f"Got {len(prompts)} prompts, {len(set(prompts))} of them different; expected some, each once."
        )
    if not 1 <= kept <= seeds or (kept < seeds and scorer is None):
        raise ValueError(
            f"Keeping {kept} of {seeds} pictures a prompt needs 1 <= top <= seeds, and a scorer that says which: "
            f"--scorer {', '.join(SCORERS)}, or module:function."
        )
    plan = {"format": 1, "prompts": hash_of(list(prompts)), "count": len(prompts), "seeds": seeds, "top": kept}
    plan |= {"seed": seed, "teacher": dict(identity)}
    address, size = hash_of(plan), max(1, PART_IMAGES // seeds)
    parts = [range(start, min(start + size, len(prompts))) for start in range(0, len(prompts), size)]
    with ExitStack() as held:
        with ranks.together():
            if ranks.is_main:
                held.enter_context(claimed(out, PLAN, plan, "folder of renders"))
                (out / CAPTIONS).unlink(missing_ok=True)
        with ranks.together():
            todo = [n for n in range(ranks.rank, len(parts), ranks.size) if not _whole(_folder(out, n), address, say)]
            meter = Meter("rendering", seeds * sum(len(parts[n]) for n in todo), "images", say)
            for number in todo:
                with sealed_folder(_folder(out, number), {"of": address}) as (folder, record):
                    rows = []
                    for row, images in _drawn(prompts, parts[number], teacher, seeds, seed, micro_batch, meter):
                        for k, score in _best(images, prompts[row], kept, scorer):
                            name = f"{row:06d}-{k:03d}.png"
                            write_atomic(folder / name, png_bytes(images[k].permute(1, 2, 0).numpy()))
                            rows.append({"file_name": name, "caption": prompts[row], "seed": _seed(seed, k, row)})
                            rows[-1] |= {} if score is None else {"score": score}
                    write_atomic(folder / CAPTIONS, "".join(json.dumps(row) + "\n" for row in rows))
                    names = [CAPTIONS, *(row["file_name"] for row in rows)]
                    record["files"] = {name: file_entry(folder / name) for name in names}
        with ranks.together():
            if ranks.is_main:
                _finish(out, len(parts), len(prompts), say)
    return out


def _drawn(
    prompts: Sequence[str], part: range, teacher: Draws, seeds: int, seed: int, micro_batch: int, meter: Meter
) -> Iterator[tuple[int, UInt8[Tensor, "k 3 h w"]]]:
    """The row of each prompt of a part and its images, `micro_batch` drawn at once."""
    asked = [(row, k) for row in part for k in range(seeds)]
    ready: list[Tensor] = []
    row = part.start
    for start in range(0, len(asked), micro_batch):
        some = asked[start : start + micro_batch]
        images = teacher([prompts[row] for row, _ in some], [_seed(seed, k, row) for row, k in some])
        ready += [*(images.clamp(0, 1) * 255).round().to(torch.uint8)]
        meter(len(some))
        while len(ready) >= seeds:
            yield row, torch.stack(ready[:seeds])
            del ready[:seeds]
            row += 1


def _best(
    images: UInt8[Tensor, "k 3 h w"], prompt: str, top: int, scorer: Scorer | None
) -> list[tuple[int, float | None]]:
    """(number, score) of the pictures of a prompt that stay, best first."""
    if scorer is None:
        return [(k, None) for k in range(len(images))]
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    found = scorer(pictures, [prompt] * len(pictures))
    try:
        scores = [float(score) for score in found]
    except TypeError:
        scores = []
    if len(scores) != len(pictures) or any(math.isnan(score) for score in scores):
        raise ValueError(f"The scorer gave {found!r} for {len(pictures)} pictures; expected a number for each, no NaN.")
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    return [(k, scores[k]) for k in order[:top] if scores[k] > -math.inf]


def _finish(out: Path, parts: int, prompts: int, say: Say) -> None:
    """Join the rows of all parts, and say what the scorer left of the prompts."""
    lines, seen = [], set()
    for number in range(parts):
        for line in (_folder(out, number) / CAPTIONS).read_text().splitlines():
            row = json.loads(line)
            seen.add(row["caption"])
            lines.append(json.dumps({**row, "file_name": f"{_folder(out, number).name}/{row['file_name']}"}))
    if not lines:
        raise ValueError(f"The scorer left no picture of {prompts} prompts; look at what it says of {out}.")
    write_atomic(out / CAPTIONS, "\n".join(lines) + "\n")
    none = f"; no picture of {prompts - len(seen)} prompts was good enough" if len(seen) < prompts else ""
    say(f"{out}: {len(lines)} pictures of {len(seen)} prompts{none}")


def _seed(seed: int, k: int, row: int) -> int:
    return (seed + k) * PRIME + row


def _folder(out: Path, part: int) -> Path:
    return out / f"part-{part:05d}"


def _whole(folder: Path, address: str, say: Say) -> bool:
    """Whether a part is there, to the byte; what is left of it otherwise is removed."""
    if not folder.exists():
        return False
    try:
        if read_sealed(folder, "It is drawn again.").get("of") == address:
            return True
    except ValueError as error:
        say(str(error))
    remove(folder)
    return False
