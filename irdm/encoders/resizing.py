"""How pretrained encoders bring images to their size: each name of the table is what its publisher does.

Letters: n rows, h height, w width, r the encoder's resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from irdm.data.image_source import in_threads
from irdm.encoders.weights import require

Images = Float[Tensor, "n 3 h w"]
Resized = Float[Tensor, "n 3 r r"]


def _interpolate(mode: str, images: Images, resolution: int) -> Resized:
    """Antialiased, as PIL does it; images of the right size stay as they are."""
    if images.shape[2:] == (resolution, resolution):
        return images
    return F.interpolate(images, (resolution, resolution), mode=mode, antialias=True)


def _tf1_bilinear(images: Images, resolution: int) -> Resized:
    """TensorFlow 1's bilinear resize, which FID is defined with: corners at 0, no antialiasing."""
    resize = require("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    return resize(images, size=(resolution, resolution), align_corners=False)


def _pillow(square: bool, images: Images, resolution: int) -> Resized:
    """Pillow's own bicubic resize of 8-bit pictures, rounded and clipped as saving them would; no gradient passes.

    The published codes of FD-DINOv2 and CMMD resize so. `square` cuts the centre square first, as that of CMMD does.
    """
    if images.requires_grad:
        raise ValueError(
            "An encoder that resizes pictures of 8 bits has no gradient in them: it can judge, and never train."
        )
    octets = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    height, width = octets.shape[1:3]
    side = min(height, width)
    top, left = ((height - side) // 2, (width - side) // 2) if square else (0, 0)
    bottom, right = (top + side, left + side) if square else (height, width)

    def resized(picture: np.ndarray) -> Tensor:
        image = Image.fromarray(picture).crop((left, top, right, bottom))
        image = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    return torch.stack(list(in_threads(resized, octets))).to(images.device) / 255


RESIZES: dict[str, Callable[[Images, int], Resized]] = {
    "bicubic": partial(_interpolate, "bicubic"),
    "bilinear": partial(_interpolate, "bilinear"),
    "tf1": _tf1_bilinear,
    "pillow": partial(_pillow, False),
    "pillow square": partial(_pillow, True),
}
