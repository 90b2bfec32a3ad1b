"""Images -> encoders -> features: the one path that training references and evaluation share. And thumbnails.

Letters: n images, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

THUMBNAIL = 32  # pixels a side
POINTS = 4  # images of fewer pixels a side are no pictures


@torch.no_grad()
def extract(encoders: Mapping[str, nn.Module], images: Tensor, micro_batch: int = 1024) -> dict[str, Tensor]:
    """Features of images [n, c, h, w] under each encoder: {name: float32 [n, d]}, `micro_batch` images at a time.

    Raises ValueError for a micro-batch below 1, and naming an encoder whose features are not finite.
    """
    if micro_batch < 1:
        raise ValueError(f"Got a micro-batch of {micro_batch} images; expected at least 1.")
    features = {}
    for name, encoder in encoders.items():
        features[name] = torch.cat([encoder(chunk).float() for chunk in images.split(micro_batch)])
        if bad := int((~features[name].isfinite()).any(1).sum()):
            raise ValueError(
                f"Encoder '{name}' gave NaN or infinity for {bad} of {len(images)} images; refit or replace it."
            )
    return features


def thumbnail_shape(image_shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """(channels, height, width) of the thumbnails of such images; None for points of a plane, which have none."""
    channels, height, width = image_shape
    return None if min(height, width) < POINTS else (channels, min(height, THUMBNAIL), min(width, THUMBNAIL))


def thumbnails(images: Float32[Tensor, "n c h w"]) -> UInt8[Tensor, "n c s t"] | None:
    """Images of at most 32 pixels a side as they are, larger ones averaged down to that; on the CPU.

    The same on every machine: means that lie on the edge of two levels are always rounded up.
    """
    _, channels, height, width = images.shape
    if (small := thumbnail_shape((channels, height, width))) is None:
        return None
    levels = (images.cpu() * 255).round().clamp(0, 255)
    return (F.adaptive_avg_pool2d(levels, small[1:]) + 0.5001).floor().to(torch.uint8)
