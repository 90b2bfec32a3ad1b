"""PickScore (Kirstain et al., 2023): how much people like an image for its prompt, by a CLIP-H taught on their choices.

    score = exp(logit scale) cos(image embedding, text embedding)

Reported as a mean, and as the share of prompts where one generator's image scores above another's for the same noise.

Letters: n images with their prompts, d numbers of an embedding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from PIL import Image
from torch import Tensor

from irdm.metrics.base import MIN_ROWS
from irdm.metrics.intervals import bootstrap_interval, fold_means, folds
from irdm.metrics.score import Estimate, Score

MODEL = "yuvalkirstain/PickScore_v1"
MODEL_REVISION = "a4e4367c6dfa7288a00c550414478f865b875800"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PROCESSOR_REVISION = "1c2b8495b28150b8a4922ee1c8edee224c284c0c"


class PickScore:
    """A CLIP model and its processor, which turn images and their prompts into scores."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval().requires_grad_(False), processor

    @classmethod
    def load(cls, folder: Path | None = None, *, fetch: bool = False, device: torch.device | str = "cpu") -> PickScore:
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
            raise ValueError("PickScore needs the package transformers: pip install 'irdm[panel]'.") from error
        places = [(MODEL, MODEL_REVISION), (PROCESSOR, PROCESSOR_REVISION)]
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
                f"PickScore cannot be loaded from {weights} and {files}: {error}\nGive a folder that holds both "
                "($IRDM_WEIGHTS/pickscore/model and .../processor), or, with a network, run "
                "`irdm encoders fetch pickscore`."
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
            found.append(self._score(pictures, texts))
        if next(supply, None) is not None:
            raise ValueError(f"Got more images than the {len(prompts)} prompts; give one each.")
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)

    def _score(self, pictures: list[Image.Image], texts: list[str]) -> Float64[Tensor, " n"]:
        device = self.model.logit_scale.device
        pixels = self.processor(images=pictures, return_tensors="pt").to(device)
        tokens = self.processor(text=texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        seen = _embedding(self.model.get_image_features(pixel_values=pixels["pixel_values"]))
        read = _embedding(
            self.model.get_text_features(
                input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
            )
        )
        return (self.model.logit_scale.double().exp() * (seen * read).sum(dim=1)).cpu()


def _embedding(output: Any) -> Float64[Tensor, "n d"]:
    """Unit rows. transformers 5 returns an output object, whose pooled part is projected; 4 the projection itself."""
    rows: Float[Tensor, "n d"] = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(rows.double(), dim=1)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("RGB", "L", "P", "RGBA", "CMYK", "LA"):
        raise ValueError(f"Got a picture of mode {picture.mode}, expected 8 bits a channel, such as RGB.")
    return picture.convert("RGB")


def pickscore(
    scores: Float64[Tensor, " n"], real: Float64[Tensor, " n"] | None = None, *, seed: int = 0
) -> dict[str, Score]:
    """The mean score, with a bootstrap interval over prompts, beside that of real images of the same prompts."""
    _check(scores)
    control = None if real is None else real.mean().item()
    says = (
        "How much people like the images for their prompts, as a model taught on their choices says; higher is better."
    )
    score = Score(label="PickScore", direction="higher", says=says, mean=_mean(scores, seed, control))
    return {"pickscore": score.model_copy(update={"notes": {"rows": len(scores)}})}


def win_rate(ours: Float64[Tensor, " n"], theirs: Float64[Tensor, " n"], *, seed: int = 0) -> tuple[Estimate, Estimate]:
    """The share of prompts where our image scores above theirs, ties counting half; and the mean difference.

    Row i of both must be of one prompt and, for two generators, of one noise: the bootstrap draws pairs. A rate of 0.5
    is a draw.

    Raises ValueError for unequal numbers of rows, fewer than 8, NaN or infinity.
    """
    _check(ours)
    _check(theirs)
    if len(ours) != len(theirs):
        raise ValueError(f"Got {len(ours)} and {len(theirs)} scores; a win is decided between images of one prompt.")
    wins = (ours > theirs).double() + 0.5 * (ours == theirs).double()
    return _mean(wins, seed), _mean(ours - theirs, seed)


def _mean(rows: Float64[Tensor, " n"], seed: int, control: float | None = None) -> Estimate:
    replicates = fold_means(rows, folds(len(rows), seed)).tolist()
    return Estimate(
        value=rows.mean().item(), ci95=bootstrap_interval(rows, seed), control=control, replicates=tuple(replicates)
    )


def _check(scores: Float64[Tensor, " n"]) -> None:
    if len(scores) < MIN_ROWS or not scores.isfinite().all():
        raise ValueError(f"Got {len(scores)} scores, expected at least {MIN_ROWS}, all finite.")
