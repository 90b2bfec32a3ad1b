"""One image -> uint8 [3, size, size]: every still picture in the same way, or an error that names it.

What is done, in this order: the camera's rotation (EXIF) is applied; 16-bit grey is rounded to 8 bits; transparency is
laid over white; greyscale, palette, CMYK and other colour models become RGB (colour profiles are not applied); the
centre is cropped as for ADM. What is refused: a file that is cut short or no image, and one with several frames, for
which there is no telling which one is meant.

Letters: h height, w width.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

PREPROCESSING = "adm-centre-crop/1"  # part of a store's identity: raise the number when pixels change
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # never those that start other programs (EPS)
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")


def decode(data: bytes | NDArray[np.uint8], size: int | None, name: str) -> UInt8[Tensor, "3 h w"]:
    """The pixels of one encoded image, or of an array [h, w, 3], centre-cropped to `size`; None leaves their size.

    Raises ValueError naming the image when it is cut short, animated, or nothing that can be read.
    """
    try:
        if isinstance(data, bytes):
            with Image.open(io.BytesIO(data), formats=FORMATS) as file:
                picture = _to_rgb(file)
        else:
            picture = Image.fromarray(data)
        if size is not None:
            picture = centre_crop(picture, size)
    except Exception as error:  # a broken file leads Pillow into errors of every kind, and each must name the file
        what = "it is no picture in a known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"The image {name} cannot be used: {what}. Repair it or take it out.") from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square [size, size], as evaluations of class-conditional ImageNet models cut it (ADM).

    The image is halved by box averages while its shorter side is at least twice `size`, brought to that side by bicubic
    interpolation (up or down), and cut equally on both ends of the longer side.

    Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv 2105.05233, its evaluation data.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _to_rgb(file: Image.Image) -> Image.Image:
    """The only frame of an opened file, upright, as 8-bit RGB."""
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":  # a phone's JPEG with a preview or a depth map behind the photograph
        raise ValueError(f"it has {frames} frames; expected a still picture")
    file.load()
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):
        return _eight_bits(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; expected 8 or 16 bits a channel")
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey rounded to 8 bits; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its grey values span {values.min()} to {values.max()}; expected at most 16 bits, 0 to 65535")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
