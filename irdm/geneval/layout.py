"""GenEval's folder: DIR/<5 digits>/metadata.jsonl, a prompt, and DIR/<5 digits>/samples/<4 digits>.png, its images.

Sample s of prompt i starts from noise of its own generator, of seed 46,000,000 + 100 i + s: that of the authors of RDM.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from PIL import Image
from torch import Tensor

from irdm.conditions import PromptSpec, Spec
from irdm.data.base import Shape
from irdm.distributed import Ranks
from irdm.files import claimed, hash_of, write_atomic
from irdm.generate import Drawn
from irdm.generators import Generator
from irdm.geneval.prompts import Prompt, PromptFile, read_prompt
from irdm.progress import Meter, Say, silent

FIRST_SEED, MOST_SAMPLES = 46_000_000, 100
RECORD = "render.json"
"""Beside the prompts' folders: which weights drew which prompts, how."""
NAMED = 3  # of what is missing, in a message


class Sample(NamedTuple):
    """One image of the folder, and the number and text of its prompt."""

    path: Path
    number: int
    prompt: Prompt

    @property
    def name(self) -> str:
        """Where it lies in the folder."""
        return "/".join(self.path.parts[-3:])


def sample_seed(prompt: int, sample: int) -> int:
    """The seed of a sample's noise."""
    return FIRST_SEED + MOST_SAMPLES * prompt + sample


class Samples(Drawn):
    """Images of prompts in GenEval's order: row `samples` i + s is sample s of prompt i."""

    def __init__(
        self, generator: Generator, spec: Spec, shape: Shape, texts: Sequence[str], samples: int, *,
        device: str = "cpu", noise_device: str = "cpu", identity: str = "", name: str = "generated",
    ):  # fmt: skip
        """`noise_device` is where the numbers are drawn: CPU and CUDA draw different ones from one seed.

        Raises ValueError for a generator that draws no prompts.
        """
        if not 1 <= samples <= MOST_SAMPLES:
            raise ValueError(f"Got {samples} samples a prompt; seeds are distinct for 1 to {MOST_SAMPLES}.")
        if not isinstance(spec, PromptSpec):
            raise ValueError(f"{name} draws no texts (its conditions are '{spec.kind}'), and GenEval asks for texts.")
        conditions = spec.named([text for text in texts for _ in range(samples)], len(texts) * samples)
        super().__init__(generator, conditions, shape, FIRST_SEED, device=device, identity=identity, name=name)
        self.samples, self.noise_device = samples, noise_device

    def _noise(self, rows: Int64[Tensor, " k"]) -> Float32[Tensor, "k ..."]:
        drawn = []
        for row in rows.tolist():
            generator = torch.Generator(self.noise_device).manual_seed(sample_seed(*divmod(row, self.samples)))
            drawn.append(torch.randn(self.generator.noise_shape, generator=generator, device=self.noise_device))
        return torch.stack(drawn)


Draws = Callable[[Sequence[str], Sequence[int]], Tensor]
"""(captions, seeds) -> images [k, c, h, w] in [0, 1]: a sampler that makes its own noise."""


class TeacherSamples:
    """The same images of a sampler, such as `irdm.generators.klein_teacher.Teacher`."""

    def __init__(
        self, draws: Draws, shape: Shape, texts: Sequence[str], samples: int, *,
        noise_device: str = "cpu", identity: str = "",
    ):  # fmt: skip
        """`identity` says which weights and steps these are."""
        self.draws, self.image_shape, self.texts, self.samples = draws, shape, texts, samples
        self.noise_device, self.fingerprint = noise_device, hash_of([identity, FIRST_SEED, samples, *texts])

    def read(self, rows: Int64[Tensor, " k"]) -> Float32[Tensor, "k c h w"]:
        """Some images, in [0, 1]. Raises ValueError for one that is not finite."""
        places: list[tuple[int, int]] = [divmod(row, self.samples) for row in rows.tolist()]
        images = self.draws([self.texts[number] for number, _ in places], [sample_seed(*place) for place in places])
        if not images.isfinite().all():
            raise ValueError("The teacher returned NaN or infinity; try --precision float32.")
        return images.float().cpu().clamp(0, 1)


def render(
    images: Samples | TeacherSamples,
    prompts: PromptFile,
    folder: Path,
    *,
    micro_batch: int = 8,
    ranks: Ranks | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Say = silent,
) -> int:
    """Write what the folder lacks of the images, and return how many that were; interrupted, the same call goes on.

    Args:
        images: of all prompts.
        prompts: theirs.
        folder: new, empty, or one that was begun by the same generator with the same prompts.
        micro_batch: images drawn at once.
        ranks: this process among its peers, which share the images.
        about: what to write down of the generator.
        progress: receives a line of text now and then.

    Raises ValueError when the folder holds something else, or an image is not finite.
    """
    ranks = ranks or Ranks()
    record = {
        "prompts": prompts.sha256, "samples": images.samples, "images": images.fingerprint,
        "noise": torch.device(images.noise_device).type, "shape": list(images.image_shape), **(about or {}),
    }  # fmt: skip
    samples = layout(folder, prompts.prompts, images.samples)
    with ExitStack() as held:
        with ranks.together():
            if ranks.is_main:
                held.enter_context(claimed(folder, RECORD, record, "GenEval folder"))
                for number, prompt in enumerate(prompts.prompts):
                    path = folder / f"{number:05d}" / "metadata.jsonl"
                    if not path.exists():
                        write_atomic(path, json.dumps(prompt.metadata, indent=4))
        share = ranks.share(len(samples))
        rows = [row for row in range(share.start, share.stop) if not samples[row].path.exists()]
        tick = Meter("GenEval", len(rows), "images", progress)
        with ranks.together():
            for some in (rows[start : start + micro_batch] for start in range(0, len(rows), micro_batch)):
                for row, image in zip(some, images.read(torch.tensor(some)), strict=True):
                    write_atomic(samples[row].path, _png(image))
                tick(len(some))
    return len(rows)


def _png(image: Float[Tensor, "c h w"]) -> bytes:
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def layout(folder: Path, prompts: Sequence[Prompt], samples: int) -> list[Sample]:
    """The images of a folder in their order, whether or not they are there."""
    return [
        Sample(folder / f"{number:05d}" / "samples" / f"{sample:04d}.png", number, prompt)
        for number, prompt in enumerate(prompts)
        for sample in range(samples)
    ]


def rendered(folder: Path, prompts: PromptFile | None) -> list[Sample]:
    """The images of a folder that is whole: every prompt of the file with equally many images, and nothing else.

    Files may have other numbers of digits, as the official scorer allows. Without `prompts` the folder says them.

    Raises ValueError for a folder that is half rendered, or of other prompts.
    """
    again = f"Repeat the `irdm geneval render` that wrote {folder}: it draws what is missing."
    places = sorted(folder.iterdir(), key=lambda place: place.name) if folder.is_dir() else []
    places = {int(place.name): place for place in places if place.is_dir() and place.name.isdigit()}
    if not places:
        raise ValueError(
            f"{folder} holds no folder of GenEval's, such as 00000: give what `irdm geneval render` wrote."
        )
    if prompts is not None and places.keys() != set(range(len(prompts.prompts))):
        raise ValueError(
            f"{folder} has folders of {len(places)} prompts and {prompts.path} has {len(prompts.prompts)}: they are "
            f"not of one another, or the folder is half rendered. {again}"
        )
    found: list[Sample] = []
    counts: dict[Path, int] = {}
    for number, place in sorted(places.items()):
        prompt = _prompt_of(place, again)
        if prompts is not None and prompt != prompts.prompts[number]:
            raise ValueError(
                f"{place / 'metadata.jsonl'} asks for '{prompt.prompt}' ({prompt.tag}), but prompt {number} of "
                f"{prompts.path} is '{prompts.prompts[number].prompt}' ({prompts.prompts[number].tag}). Give the file "
                "that the folder was rendered from."
            )
        images = sorted(path for path in _visible(place / "samples") if re.fullmatch(r"\d+\.png", path.name))
        counts[place] = len(images)
        found += [Sample(path, number, prompt) for path in images]
    most = max(counts.values())
    if short := [f"{place.name} ({count})" for place, count in counts.items() if count < most or not most]:
        named = ", ".join(short[:NAMED]) + (", ..." if len(short) > NAMED else "")
        raise ValueError(
            f"{folder} is half rendered: {len(short)} of {len(counts)} prompts have fewer than {max(most, 1)} images: "
            f"{named}. {again}"
        )
    if empty := [sample.name for sample in found if not sample.path.stat().st_size]:
        raise ValueError(f"{folder} has images without content, such as {empty[0]}. Delete them. {again}")
    return found


def _visible(folder: Path) -> Iterator[Path]:
    yield from folder.iterdir() if folder.is_dir() else ()


def _prompt_of(place: Path, again: str) -> Prompt:
    path = place / "metadata.jsonl"
    try:
        return read_prompt(path.read_text(encoding="utf-8"), str(path))
    except OSError:
        raise ValueError(f"{path} is missing: the folder is half rendered. {again}") from None
