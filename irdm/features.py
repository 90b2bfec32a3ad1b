"""Images -> encoders -> features: the one path that training references and evaluation share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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
