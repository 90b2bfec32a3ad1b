"""A scorer without mmcv: transformers' Mask2Former, decoded as mmdet decodes it, and colours by open_clip.

Another metric than the official one: its network has the same architecture and other weights. So a folder's score by
the one is never put beside another folder's by the other.

Letters: q queries, n classes, d detections, H, W the size of the image, k objects, c colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from irdm.files import hash_of, sha256_of
from irdm.geneval.prompts import COLOURS, OBJECTS, Prompt
from irdm.geneval.rules import Detection, certain, faults
from irdm.geneval.verdicts import Judge

SHORT, LONG, DIVISOR = 800, 1333, 32  # of the network's input: its sides at most, and what divides them
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in 255 units
KEPT = 100  # detections an image
BACKGROUND = "#999"  # around an object whose colour is asked
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
CLIP = "ViT-L-14"


class Detector:
    """Objects of an image, by a Mask2Former for instances of COCO's 80 classes.

    transformers' own post-processing resizes masks to 384 x 384, enlarges them by the nearest pixel and gives no boxes.
    """

    def __init__(self, model: Any, *, short: int = SHORT, long: int = LONG, device: str = "cpu"):
        """Raises ValueError for a model of another number of classes."""
        if (classes := model.config.num_labels) != len(OBJECTS):
            raise ValueError(
                f"The detector knows {classes} classes, expected the {len(OBJECTS)} of COCO's instances, such as "
                "facebook/mask2former-swin-small-coco-instance."
            )
        self.model, self.short, self.long, self.device = model.eval().to(device), short, long, device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Detector:
        """A folder saved by transformers, with its weights in safetensors. Raises ValueError when it is not whole."""
        try:
            kind = import_module("transformers").Mask2FormerForUniversalSegmentation
        except ImportError as error:
            raise ValueError("This scorer needs the package transformers: pip install 'irdm[panel]'.") from error
        try:
            model, report = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder} is no Mask2Former of transformers: {error}") from error
        if odd := [*report["missing_keys"], *report["mismatched_keys"]]:  # transformers fills these with noise
            raise ValueError(f"{folder} lacks {len(odd)} weights of its network, such as {sorted(map(str, odd))[0]}.")
        return cls(model, device=device)

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> dict[str, list[Detection]]:
        """By class, in no order, of all scores: the names are GenEval's, found by number."""
        original = (image.height, image.width)
        pixels, resized = network_input(image, self.short, self.long)
        out = self.model(pixel_values=pixels.to(self.device))
        padded = (pixels.shape[2], pixels.shape[3])
        boxes, scores, labels, masks = decode(
            out.class_queries_logits[0].float(), out.masks_queries_logits[0].float(), resized, padded, original
        )
        found: dict[str, list[Detection]] = {}
        for box, score, label, mask in zip(boxes.tolist(), scores.tolist(), labels.tolist(), masks.cpu(), strict=True):
            found.setdefault(OBJECTS[label], []).append(Detection(tuple(box), score, mask))
        return found


def network_input(image: Image.Image, short: int, long: int) -> tuple[Float[Tensor, "1 3 h w"], tuple[int, int]]:
    """The picture enlarged so that its sides are at most so long, normalised, and padded by zeros to a multiple of 32.

    Returns the tensor, and the height and width before the padding.
    """
    height, width = image.height, image.width
    scale = min(short / min(height, width), long / max(height, width))
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False).round()
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    padding = [math.ceil(side / DIVISOR) * DIVISOR - side for side in size]
    return F.pad((pixels - mean) / std, (0, padding[1], 0, padding[0])), size


def decode(
    classes: Float[Tensor, "q n"],
    masks: Float[Tensor, "q h w"],
    resized: tuple[int, int],
    padded: tuple[int, int],
    original: tuple[int, int],
) -> tuple[Float[Tensor, "d 4"], Float[Tensor, " d"], Int64[Tensor, " d"], Bool[Tensor, "d H W"]]:
    """Logits of one image, no object being the last class -> boxes, scores, labels and masks, as mmdet reads them.

    Masks are enlarged to the padded input, cut to what is picture, and resized to the original, each time linearly. The
    best 100 of all pairs of query and class are kept, so that a query may speak twice. A score is the probability of
    the class times the mean probability of the mask where that is over a half. Boxes end one pixel after the mask.
    """
    probability = classes.softmax(-1)[:, :-1]
    scores, best = probability.flatten().topk(min(KEPT, probability.numel()))
    labels, queries = best % probability.shape[1], best // probability.shape[1]
    height, width = resized
    large = F.interpolate(masks[None], padded, mode="bilinear", align_corners=False)[:, :, :height, :width]
    chosen = F.interpolate(large, original, mode="bilinear", align_corners=False)[0][queries]
    on = chosen > 0
    scores = scores * (chosen.sigmoid() * on).flatten(1).sum(1) / (on.flatten(1).sum(1) + 1e-6)
    boxes = torch.zeros(len(on), 4)
    for number, mask in enumerate(on):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if len(rows):
            boxes[number] = torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1]).float()
    return boxes, scores, labels, on


class Colours:
    """The colour of an object by CLIP: its box, grey outside its mask, against ten colours in three texts each."""

    def __init__(self, model: Any, transform: Any, tokenizer: Any, device: str = "cpu"):
        self.model, self.transform, self.tokenizer = model.eval().to(device), transform, tokenizer
        self.device, self._texts = device, {}

    @classmethod
    def load(cls, weights: Path | None = None, device: str = "cpu") -> Colours:
        """open_clip's ViT-L-14 of OpenAI, from a file or from its cache. Raises ValueError when there is none."""
        try:
            open_clip = import_module("open_clip")
        except ImportError as error:
            raise ValueError("Colours need the package open_clip: pip install open_clip_torch.") from error
        try:
            pretrained = "openai" if weights is None else str(weights)
            model, _, transform = open_clip.create_model_and_transforms(
                CLIP, pretrained=pretrained, force_quick_gelu=True, weights_only=True
            )
        except Exception as error:  # of the hub, of the file, of torch
            raise ValueError(
                f"CLIP {CLIP}, which tells colours, cannot be loaded from {weights or 'the cache of open_clip'}: "
                f"{error}\nGive its weights of OpenAI with --clip FILE."
            ) from error
        return cls(model, transform, open_clip.get_tokenizer(CLIP), device)

    @torch.no_grad()
    def __call__(self, image: Image.Image, objects: Sequence[Detection], name: str) -> list[str]:
        """The colour of each object of a class."""
        crops = torch.stack([self.transform(crop(image, one)) for one in objects]).to(self.device)
        with torch.autocast("cuda", enabled=self.device.startswith("cuda")):
            seen = F.normalize(self.model.encode_image(crops), dim=-1)
            best = (seen.to(self._colours(name).dtype) @ self._colours(name).T).argmax(1)
        return [COLOURS[number] for number in best.tolist()]

    def _colours(self, name: str) -> Float[Tensor, "c d"]:
        """A unit row a colour: the mean of its three texts' unit embeddings."""
        if name not in self._texts:
            rows = []
            for colour in COLOURS:
                texts = [template.format(colour=colour, name=name) for template in TEMPLATES]
                read = F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)), dim=-1)
                rows.append(F.normalize(read.mean(0), dim=-1))
            self._texts[name] = torch.stack(rows)
        return self._texts[name]


def crop(image: Image.Image, one: Detection) -> Image.Image:
    """What CLIP is shown of an object."""
    image = image.convert("RGB")
    if one.mask is not None:
        blank = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, blank, Image.fromarray(one.mask.numpy()))
    left, top, right, bottom = map(round, one.box)
    return image.crop((left, top, right, bottom))


class TransformersScorer(Judge):
    """Detector, rules and colours, image by image."""

    kind = "transformers"
    metric = "GenEval's rules on another detector (transformers' Mask2Former): not comparable with GenEval"

    def __init__(self, detector: Detector, colours: Colours, identity: dict[str, Any]):
        self.detector, self.colours, self.identity = detector, colours, identity

    @classmethod
    def load(cls, weights: Path | None, clip: Path | None = None, device: str = "cpu") -> TransformersScorer:
        """From a folder of Mask2Former, and a file of CLIP. Raises ValueError when either is missing."""
        if weights is None or not weights.is_dir():
            raise ValueError(
                f"{weights or 'No --weights'}: the scorer transformers needs a folder of a Mask2Former for COCO's "
                "instances, such as facebook/mask2former-swin-small-coco-instance downloaded: --weights of `irdm "
                "geneval`, --detector of `irdm render`."
            )
        detector, colours = Detector.load(weights, device), Colours.load(clip, device)
        files = {
            path.name: sha256_of(path) for path in sorted(weights.glob("*")) if path.suffix in (".safetensors", ".json")
        }
        packages = {name: metadata.version(name) for name in ("torch", "transformers", "open_clip_torch")}
        identity = {
            "files": files,
            "clip": sha256_of(clip) if clip else f"{CLIP} openai",
            "rules": hash_of([SHORT, LONG, KEPT, BACKGROUND, TEMPLATES, COLOURS]),
            "packages": packages,
        }
        return cls(detector, colours, identity)

    def look(self, image: Image.Image, prompt: Prompt) -> tuple[str, dict[str, list[list[float]]]]:
        """Its faults, and the box and score of each object by class."""
        objects = certain(self.detector(image), prompt.tag)
        wrong = faults(objects, prompt, lambda some, name: self.colours(image, some, name))
        return "\n".join(wrong), {name: [[*one.box, one.score] for one in some] for name, some in objects.items()}
