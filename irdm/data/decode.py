"""One image -> uint8 [c, h, w]: every still picture in the same way, or an error that names it.

What is done, in this order: the camera's rotation (EXIF) is applied; 16-bit grey is rounded to 8 bits; transparency is
laid over white; palette, CMYK and other colour models become RGB (colour profiles are not applied), or grey by
ITU-R 601 luma where one channel is asked for, which leaves grey as it is; the centre is cropped as for ADM. What is
refused: a file that is cut short, altered or no image; one with several frames, for which there is no telling which one
is meant; and one whose pixels would fill the memory.

Letters: c channels (1 or 3), h height, w width.
"""

from __future__ import annotations

import io
import zlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

PREPROCESSING = "adm-centre-crop/1"  # part of a fingerprint: raise the number when pixels change
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # never those that start other programs (EPS)
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and those of its values that exchange height and width
MOST_PIXELS = 2**26  # of one image, as stored and as resized: 200 MB of RGB
PNG_START = b"\x89PNG\r\n\x1a\n"


class Header(NamedTuple):
    """What is known of an image before its pixels are decoded."""

    height: int
    width: int
    grey: bool
    alpha: bool


def header(data: bytes | NDArray[np.uint8], name: str) -> Header:
    """Size when upright; without colour; with an alpha channel. Raises ValueError naming what is no image."""
    if not isinstance(data, bytes):
        return Header(data.shape[0], data.shape[1], data.shape[2] == 1, False)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            size = (file.width, file.height) if file.getexif().get(ORIENTATION) in TURNED else (file.height, file.width)
            return Header(*size, file.mode in GREY, _has_alpha(file))
    except MemoryError:
        raise
    except Exception as error:
        raise _unusable(name, error) from error


def decode(
    data: bytes | NDArray[np.uint8], shape: tuple[int, int] | None, name: str, channels: int = 3
) -> UInt8[Tensor, "c h w"]:
    """The pixels of one encoded image, or of an array [h, w, c], centre-cropped to `shape`; None leaves their size.

    Raises ValueError naming the image when it is cut short, altered, animated, too large, or no picture.
    """
    try:
        if isinstance(data, bytes):
            _check_png(data)
            with Image.open(io.BytesIO(data), formats=FORMATS) as file:
                picture = _upright(file)
        else:
            picture = Image.fromarray(data[..., 0] if data.shape[2] == 1 else data)
        picture = picture.convert("L" if channels == 1 else "RGB")
        if shape is not None:
            picture = centre_crop(picture, shape)
    except MemoryError:
        raise
    except Exception as error:  # a broken file leads Pillow into errors of every kind, and each must name the file
        raise _unusable(name, error) from error
    return torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, channels).permute(2, 0, 1).clone()


def centre_crop(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """The central part [h, w], as evaluations of class-conditional ImageNet models cut their squares (ADM).

    The image is halved by box averages while both sides are at least twice what is asked for, brought to cover it by
    bicubic interpolation (up or down), and cut equally on both ends of the longer side.

    Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv 2105.05233, its evaluation data.
    """
    height, width = shape
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    covering = round(image.width * scale), round(image.height * scale)
    if covering[0] * covering[1] > MOST_PIXELS:
        raise ValueError(f"at {image.width} x {image.height} pixels it is too long to be cropped to {width} x {height}")
    image = image.resize(covering, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _upright(file: Image.Image) -> Image.Image:
    """The only frame of an opened file, upright, of 8 bits a channel and opaque."""
    if file.width * file.height > MOST_PIXELS:
        raise ValueError(f"it has {file.width} x {file.height} pixels; expected at most {MOST_PIXELS} in all")
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":  # a phone's JPEG with a preview or a depth map behind the photograph
        raise ValueError(f"it has {frames} frames; expected a still picture")
    file.load()
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):
        return _eight_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; expected 8 or 16 bits a channel")
    if _has_alpha(image):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in TRANSPARENT or "transparency" in image.info


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey rounded to 8 bits; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its grey values span {values.min()} to {values.max()}; expected at most 16 bits, 0 to 65535")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _check_png(data: bytes) -> None:
    """Raises ValueError when a checksum of a PNG is wrong: Pillow does not compare those of its pixels."""
    at, kind = len(PNG_START), b"" if data.startswith(PNG_START) else b"IEND"
    while kind != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")  # length, kind, content, checksum
        if end > len(data):
            raise ValueError("it is cut short")
        kind = data[at + 4 : at + 8]
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"it was altered: the checksum of its part {kind!r} does not match")
        at = end


def _unusable(name: str, error: Exception) -> ValueError:
    what = "it is no picture in a known format" if isinstance(error, Image.UnidentifiedImageError) else error
    return ValueError(f"The image {name} cannot be used: {what}. Repair it or take it out.")
