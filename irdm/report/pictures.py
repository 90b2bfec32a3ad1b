"""The pictures of a page: PNG files in its own text, reduced until the page stays light."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from irdm.images import png_bytes

GALLERY_BYTES, PAIR_BYTES = 2_000_000, 600_000  # raw pixels; base64 PNG of pure noise would be a third more
LARGE = 64  # pixels a side above which there are fewer images
PAIRS = 8


def image_uris(images: UInt8[np.ndarray, "n h w c"], budget: float) -> list[str]:
    """PNG addresses of images that are smoothly reduced to `budget` bytes of pixels each; smaller ones stay."""
    if not len(images):
        return []
    h, w, c = images.shape[1:]
    shrink = min(1.0, (budget / (h * w * c)) ** 0.5)
    size = (max(1, int(w * shrink)), max(1, int(h * shrink)))
    found = []
    for image in images:
        if size != (w, h):
            picture = Image.fromarray(image[..., 0] if c == 1 else image)
            image = np.asarray(picture.resize(size, Image.Resampling.LANCZOS)).reshape(size[1], size[0], c)
        png = png_bytes(np.ascontiguousarray(image))
        found.append("data:image/png;base64," + base64.b64encode(png).decode())
    return found


def gallery(samples: Mapping[str, NDArray]) -> dict[str, Any] | None:
    """Generated beside real images: a row a caption where both have most of them, or else one row of all.

    In one row of all each image has its own caption, if it has one.
    """
    if not samples or not len(samples["generated"]):
        return None
    large = max(samples["generated"].shape[1:3]) > LARGE
    captions = list(dict.fromkeys(samples["generated_captions"].tolist()))
    common = set(captions) & set(samples["real_captions"].tolist())
    groups = len(captions) > 1 and 2 * len(common) >= len(captions)
    most, each = (12, 5) if large else (20, 10)
    columns = each if groups else 4 if large else 8
    each = each if groups else columns * (4 if large else 8)
    shown = np.unique(np.linspace(0, len(captions) - 1, min(most, len(captions))).round().astype(int))
    wanted = [captions[i] for i in shown] if groups else [None]
    rows = []
    for caption in wanted:
        row: dict[str, Any] = {"caption": caption or ""}
        for side in ("generated", "real"):
            images = samples[side] if caption is None else samples[side][samples[f"{side}_captions"] == caption]
            row[side] = image_uris(images[:each], GALLERY_BYTES / (2 * each * len(wanted)))
            row[f"{side}_captions"] = samples[f"{side}_captions"][:each].tolist() if caption is None else []
        rows.append(row)
    said = max(len(row["caption"]) for row in rows)
    return {
        "rows": rows, "groups": len(captions) if groups else 0, "each": each, "columns": columns, "long": said > 14,
    }  # fmt: skip


def pairs(samples: Mapping[str, NDArray]) -> dict[str, Any] | None:
    """Judged images beside the train images they come alarmingly near, and fresh real images beside theirs."""
    if "judged" not in samples or not len(samples["judged"]):
        return None
    groups = []
    for title, said, sides, ratios in (
        ("The most alarming", "Copying would show here first.", ("judged", "copied"), samples["judged_ratio"]),
        ("Fresh real images", "As near to train as half of them are.", ("fresh", "usual"), samples["fresh_ratio"]),
    ):
        left, right = (image_uris(samples[side], PAIR_BYTES / (4 * PAIRS)) for side in sides)
        share = samples["judged_share"] if sides[0] == "judged" else np.full(len(left), np.nan)
        cards = [
            {"left": one, "right": other, "ratio": float(ratio), "often": None if np.isnan(often) else _often(often)}
            for one, other, ratio, often in zip(left, right, ratios, share, strict=True)
        ]
        groups.append({"title": title, "said": said, "cards": cards})
    return {"groups": groups}


def _often(share: float) -> str:
    """How often a fresh real image is as near to train, in words."""
    return f"{100 * share:.2g}% of fresh" if share > 0 else "no fresh one"


def latest_grid(folder: Path) -> dict[str, str] | None:
    """The newest grid that a run has written. Raises ValueError naming a file that is no picture."""
    grids = sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime)
    if not grids:
        return None
    try:
        with Image.open(grids[-1]) as file:
            picture = np.asarray(file.convert("RGB"))
    except Exception as error:  # Pillow has many words for "broken"
        raise ValueError(f"{grids[-1]} cannot be read ({error}). Delete it; the run writes a new one.") from None
    return {"src": image_uris(picture[None], GALLERY_BYTES)[0], "name": grids[-1].stem}
