"""Images as pictures: a grid of many, PNG bytes, and a file that is either the old one or the new one.

n images, c channels (1 or 3), h height, w width.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from irdm.files import write_atomic

VISIBLE = 48  # a cell smaller than this many pixels is hard to see on a screen


def image_grid(images: Float[Tensor, "n c h w"], columns: int, scale: int | None = None) -> UInt8[np.ndarray, "H W c"]:
    """Lay images in [0, 1] out row by row, a white gutter between them and white where the last row ends early.

    Each pixel becomes a `scale` x `scale` square (nearest neighbour); without a scale, the smallest one that makes a
    cell at least 48 pixels, so 8x8 digits can be seen and photographs stay as they are. Values are rounded to 8 bits.
    Raises ValueError for another shape, no image, values that are not finite or outside [0, 1], columns or scale < 1.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images have shape {tuple(images.shape)}; give [n, c, h, w] with n >= 1 and c = 1 or 3")
    if columns < 1 or (scale is not None and scale < 1):
        raise ValueError(f"columns is {columns} and scale is {scale}; both must be at least 1")
    images = images.detach().to("cpu", torch.float32)
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # also true when either is NaN
        raise ValueError(f"image values run from {low:g} to {high:g}; they must be finite and lie in [0, 1]")
    n, c, h, w = images.shape
    scale = scale or max(1, -(-VISIBLE // max(h, w)))
    columns = min(columns, n)
    rows = -(-n // columns)
    cell_h, cell_w = h * scale, w * scale
    gutter = max(1, max(cell_h, cell_w) // 16)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    shape = (rows * (cell_h + gutter) - gutter, columns * (cell_w + gutter) - gutter, c)
    grid = np.full(shape, 255, np.uint8)
    for i, cell in enumerate(pixels):
        y, x = (i // columns) * (cell_h + gutter), (i % columns) * (cell_w + gutter)
        grid[y : y + cell_h, x : x + cell_w] = cell.repeat(scale, axis=0).repeat(scale, axis=1)
    return grid


def png_bytes(array: UInt8[np.ndarray, "h w c"]) -> bytes:
    """A PNG file in memory. Raises ValueError unless the array is uint8 [h, w, c] with c = 1 or 3."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"the picture is {array.dtype} {array.shape}; give uint8 [h, w, c] with c = 1 or 3")
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(path: Path, array: UInt8[np.ndarray, "h w c"]) -> None:
    """Write a PNG; a reader of `path` sees the old file or the whole new one, never a part."""
    write_atomic(Path(path), png_bytes(array))
