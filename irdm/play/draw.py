"""Pictures of one request: of a run in one step, and of klein's four-step teacher from the same noise."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from irdm.generators import Klein, KleinConfig
from irdm.generators.klein_teacher import Teacher
from irdm.images import image_grid, png_bytes
from irdm.run import LoadedRun, load_run

MOST = 32  # pictures at once
LONGEST = 2000  # characters of a caption
CHOICES = 1000  # classes a page offers


@dataclass(frozen=True)
class Shown:
    """PNG pictures as addresses, and what they took."""

    name: str
    evaluations: int
    seconds: float
    pictures: list[str] = field(repr=False)


class Player:
    """A run that is asked for pictures. Picture i of a request with seed s has the noise of torch's seed s + i."""

    def __init__(self, run: Path, device: str | None = None, teacher: bool = True):
        """`teacher`: of klein, its teacher too. Raises ValueError when the run cannot be opened."""
        self.run: LoadedRun = load_run(run, device)
        config = self.run.config.generator
        self.teacher: Teacher | None = None
        if teacher and isinstance(config, KleinConfig) and isinstance(self.run.generator, Klein):
            fields: dict[str, Any] = {"length": config.length, "precision": config.precision}
            self.teacher = Teacher(config.model, self.run.image_shape, device=self.run.device, **fields)
            self.teacher.texts = self.run.generator.texts  # one text encoder, and each text read once

    @property
    def choices(self) -> list[str]:
        """Classes, or some captions of the run; none where nothing can be asked for."""
        return self.run.spec.each(1, CHOICES).captions() if self.run.spec.width else []

    def __call__(self, wanted: str, count: int, seed: int) -> list[Shown]:
        """`count` pictures of a class, of a text, or ("") of all classes in turn, by each of those that draw.

        Raises ValueError for what cannot be asked for.
        """
        if not 1 <= count <= MOST or not 0 <= seed < 2**32 or len(wanted) > LONGEST:
            raise ValueError(
                f"Asked for {count} pictures from seed {seed} by {len(wanted)} characters; expected 1 to {MOST}, "
                f"a seed from 0 to {2**32 - 1} and at most {LONGEST} characters."
            )
        spec = self.run.spec
        names = [wanted] if wanted else self.choices
        conditions = spec.named(names, count) if names else spec.each(count)
        self.run.generator.look_at(conditions)
        captions, seeds = conditions.captions(), [seed + i for i in range(count)]
        noise = torch.stack([_noise(self.run.generator.noise_shape, one) for one in seeds]).to(self.run.device)
        inputs = conditions.inputs(self.run.device)
        if isinstance(self.run.generator, Klein):
            self.run.generator.texts(captions, self.run.device)  # read, and kept, before the clock starts
        with torch.no_grad():
            shown = [self._timed("one step", 1, lambda: self.run.generator(noise, **inputs).float().cpu())]
            if self.teacher is not None:
                teacher = self.teacher
                steps = self.teacher.steps
                shown.append(self._timed(f"teacher, {steps} steps", steps, lambda: teacher(captions, seeds)))
        return shown

    def _timed(self, name: str, evaluations: int, draw: Any) -> Shown:
        began = time.perf_counter()
        images = draw()
        seconds = time.perf_counter() - began
        if not images.isfinite().all():
            raise ValueError(f"{name} returned NaN or infinity; the run diverged.")
        return Shown(name, evaluations, seconds, _addresses(images.clamp(0, 1)))


def _noise(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _addresses(images: Float[Tensor, "n c h w"]) -> list[str]:
    pngs = [png_bytes(image_grid(image[None], columns=1, scale=1)) for image in images]
    return ["data:image/png;base64," + base64.b64encode(png).decode() for png in pngs]
