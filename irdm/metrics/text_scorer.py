"""Scores of an image with its prompt, by a CLIP model: what PickScore and CLIPScore share.

Letters: n images with their prompts, d numbers of an embedding.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor

from irdm.metrics.base import MIN_ROWS
from irdm.metrics.score import Score

Scorer = TypeVar("Scorer", bound="TextScorer")


class TextScorer(ABC):
    """A CLIP model and its processor, which turn images and their prompts into scores. A subclass says which."""

    name: ClassVar[str]
    """What the score is called."""
    folder: ClassVar[str]
    """Its folder of weights, with `model/` and `processor/`; and the name of its score in a result."""
    model_source: ClassVar[tuple[str, str]]
    """Repository on the hub, and commit, of the model."""
    processor_source: ClassVar[tuple[str, str]]
    """The same of the processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor

    @classmethod
    def load(
        cls: type[Scorer], folder: Path | None = None, *, fetch: bool = False, device: torch.device | str = "cpu"
    ) -> Scorer:
        """The published scorer, in float32, from safetensors.

        Args:
            folder: a local folder with `model/` and `processor/`, each as saved by transformers; None takes the pinned
                revisions from the hub's cache.
            fetch: download what the cache has not.
            device: where to compute.

        Raises:
            ValueError: when transformers or the files are not there.
        """
        try:
            transformers = import_module("transformers")  # slow to import, and an extra
        except ImportError as error:
            raise ValueError(f"{cls.name} needs the package transformers: pip install 'irdm[panel]'.") from error
        places = [cls.model_source, cls.processor_source]
        if folder is not None:
            places = [(os.fspath(folder / part), "main") for part in ("model", "processor")]
        (weights, weights_revision), (files, files_revision) = places
        offline = folder is not None or not fetch
        try:
            model, report = transformers.CLIPModel.from_pretrained(
                weights,
                revision=weights_revision,
                local_files_only=offline,
                use_safetensors=True,
                output_loading_info=True,
            )
            if odd := [*report["missing_keys"], *report["mismatched_keys"]]:  # transformers fills these with noise
                raise ValueError(
                    f"{len(odd)} weights are missing or of another shape, such as {sorted(map(str, odd))[0]}"
                )
            processor = transformers.AutoProcessor.from_pretrained(
                files, revision=files_revision, local_files_only=offline
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{cls.name} cannot be loaded from {weights} and {files}: {error}\nGive a folder that holds both "
                f"($IRDM_WEIGHTS/{cls.folder}/model and .../processor), or, with a network, run "
                f"`irdm encoders fetch {cls.folder}`."
            ) from error
        return cls(model.float().to(device), processor)

    @torch.no_grad()
    def scores(
        self, images: Iterable[Image.Image], prompts: Sequence[str], micro_batch: int = 64
    ) -> Float64[Tensor, " n"]:
        """The score of each 8-bit picture for its own prompt; pictures are read `micro_batch` at a time.

        Raises ValueError for a picture that is not 8 bits a channel, or other than one picture a prompt.
        """
        supply, found = iter(images), []
        for start in range(0, len(prompts), micro_batch):
            texts = list(prompts[start : start + micro_batch])
            pictures = [_rgb(picture) for picture in islice(supply, len(texts))]
            if len(pictures) < len(texts):
                raise ValueError(f"Got {start + len(pictures)} images for {len(prompts)} prompts; give one each.")
            found.append(self.of_cosines(self._cosines(pictures, texts)))
        if next(supply, None) is not None:
            raise ValueError(f"Got more images than the {len(prompts)} prompts; give one each.")
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)

    @abstractmethod
    def of_cosines(self, cosines: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """The scores of pairs whose embeddings have these cosines."""

    @abstractmethod
    def summary(self, scores: Float64[Tensor, " n"], *, seed: int = 0) -> dict[str, Score]:
        """What a result says of the scores of all images. Raises ValueError for fewer than 8, NaN or infinity."""

    def _cosines(self, pictures: list[Image.Image], texts: list[str]) -> Float64[Tensor, " n"]:
        device = self.model.logit_scale.device
        pixels = self.processor(images=pictures, return_tensors="pt").to(device)
        tokens = self.processor(text=texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        seen = _embedding(self.model.get_image_features(pixel_values=pixels["pixel_values"]))
        read = _embedding(
            self.model.get_text_features(
                input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
            )
        )
        return (seen * read).sum(dim=1).cpu()


def check_scores(scores: Float64[Tensor, " n"]) -> None:
    """Raises ValueError for fewer than 8 scores, NaN or infinity."""
    if len(scores) < MIN_ROWS or not scores.isfinite().all():
        raise ValueError(f"Got {len(scores)} scores, expected at least {MIN_ROWS}, all finite.")


def _embedding(output: Any) -> Float64[Tensor, "n d"]:
    """Unit rows. transformers 5 returns an output object, whose pooled part is projected; 4 the projection itself."""
    rows: Float[Tensor, "n d"] = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(rows.double(), dim=1)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("RGB", "L", "P", "RGBA", "CMYK", "LA"):
        raise ValueError(f"Got a picture of mode {picture.mode}, expected 8 bits a channel, such as RGB.")
    return picture.convert("RGB")
