"""The teacher: klein as it was published, by diffusers' own pipeline and sampler, in four steps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from irdm.conditions import to_texts
from irdm.generators.base import Generator
from irdm.generators.klein import Contexts
from irdm.generators.klein_folder import open_folder
from irdm.text.contexts import DTYPES, ContextEncoder

STEPS = 4


class Teacher:
    """`teacher(captions, seeds) -> images [n, 3, h, w]` float32 in [0, 1], each decided by its caption and its seed.

    The times of the steps depend on the size of the images, as the pipeline has it.
    """

    def __init__(
        self, model: Path, image_shape: tuple[int, int, int], *, length: int = 48, steps: int = STEPS,
        precision: str = "bfloat16", contexts: Path | None = None, device: str = "cpu", noise_device: str = "cpu",
    ):  # fmt: skip
        """`contexts`: a store, as for the generator. `noise_device`: noise drawn on the CPU is the same everywhere.

        Raises ValueError when the folder is no distilled klein, or the sizes or the store are not for it.
        """
        folder, dtype = open_folder(model), DTYPES[precision]
        folder.noise_shape(image_shape)
        self.size, self.steps, self.device, self.noise_device = image_shape[1:], steps, device, noise_device
        self.texts = Contexts(ContextEncoder(folder.path, length, dtype), contexts)
        self.folder, self.dtype = folder, dtype

    @cached_property
    def pipeline(self) -> Any:
        """Loaded when an image is first drawn."""
        parts = {"transformer": self.folder.load_transformer(self.dtype), "text_encoder": None, "tokenizer": None}
        return load_pipeline(self.folder.path, self.dtype, **parts).to(self.device)

    def from_noise(self, captions: Sequence[str], noise: Float32[Tensor, "n k r q"]) -> Float32[Tensor, "n 3 h w"]:
        """Images that the given noise decides, such as a student's; on the CPU."""
        return self._drawn(captions, latents=noise.to(self.device))

    def __call__(self, captions: Sequence[str], seeds: Sequence[int]) -> Float32[Tensor, "n 3 h w"]:
        """As many images as captions, on the CPU. Raises ValueError unless there is a seed for each."""
        if len(captions) != len(seeds):
            raise ValueError(f"Got {len(captions)} captions and {len(seeds)} seeds; expected a seed for each.")
        return self._drawn(captions, generator=[torch.Generator(self.noise_device).manual_seed(seed) for seed in seeds])

    def _drawn(self, captions: Sequence[str], **start: Any) -> Float32[Tensor, "n 3 h w"]:
        images = self.pipeline(
            prompt_embeds=self.texts(captions, self.device),
            height=self.size[0],
            width=self.size[1],
            num_inference_steps=self.steps,
            guidance_scale=1.0,
            output_type="pt",
            **start,
        ).images
        return images.float().cpu()


class Stepwise(Generator):
    """A teacher as a generator: `forward(noise [n, k, r, q], captions [n, b]) -> images [n, 3, h, w]` in [0, 1]."""

    def __init__(self, teacher: Teacher, noise_shape: tuple[int, ...]):
        super().__init__()
        self.sampler, self.noise_shape = teacher, noise_shape

    def forward(self, noise: Float32[Tensor, "n k r q"], captions: UInt8[Tensor, "n b"]) -> Float32[Tensor, "n 3 h w"]:
        """`steps` evaluations of the transformer; all randomness is in the noise."""
        return self.sampler.from_noise(to_texts(captions), noise)


def load_pipeline(path: Path, dtype: torch.dtype, **parts: Any) -> Any:
    """The `Flux2KleinPipeline` of a folder, silent; `parts` stand in place of those there."""
    from diffusers import Flux2KleinPipeline
    from diffusers.utils import logging

    with warnings.catch_warnings():  # of the name of an argument, which changes between versions
        warnings.simplefilter("ignore", FutureWarning)
        logging.disable_progress_bar()
        try:
            pipeline = Flux2KleinPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True, **parts)
        finally:
            logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
