"""Images -> features, a block at a time: the one function that an engine is, and the plain engine, this process.

Who stores features (`irdm.store.builder`) or keeps them in memory (`irdm.evaluation.embedding`) says which rows make a
block and puts the blocks where they belong; an engine reads and embeds them, in whatever processes it has. What is
computed together decides rounding, so a block is read and embedded whole by every engine: the features are the same.

Letters: k rows of a block, c channels, d features.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jaxtyping import Int64
from torch import Tensor, nn

from irdm.data.base import Split
from irdm.features import extract, thumbnails
from irdm.progress import duration

DECODING = "decoding"  # among the seconds of a block; no encoder's, which stand behind a dot


class Embedded(NamedTuple):
    """What a block of k images became."""

    features: dict[str, Tensor]
    """{encoder: float32 [k, d]}."""
    thumbnails: Tensor | None
    """uint8 [k, c, s, t] on the CPU, where the images are pictures."""
    seconds: dict[str, float]
    """Of work, by what it was: DECODING, and ".NAME" of each encoder."""


Engine = Callable[[Split, Mapping[str, nn.Module], Sequence[Int64[Tensor, " _"]], str], Iterator[Embedded]]
"""(split, encoders on the device, blocks of rows, device) -> each block under every encoder, in the blocks' order.

Raises ValueError for an image that cannot be used, or an encoder that gives NaN, infinity, or not a row an image.
"""


def plain(
    split: Split, encoders: Mapping[str, nn.Module], blocks: Sequence[Int64[Tensor, " _"]], device: str
) -> Iterator[Embedded]:
    """The engine of this process: a thread reads the next block while one is embedded."""
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read_block, split, blocks[0]) if blocks else None
        for block in [*blocks[1:], None]:
            if ahead is None:
                return
            images, seconds = ahead.result()
            ahead = None if block is None else reader.submit(read_block, split, block)
            yield embed_block(encoders, images, device, seconds)


def read_block(split: Split, rows: Int64[Tensor, " k"]) -> tuple[Tensor, float]:
    """The images [k, c, h, w] of a block, and the seconds that reading and decoding them took."""
    began = time.perf_counter()
    images = split.read(rows)
    return images, time.perf_counter() - began


def embed_block(encoders: Mapping[str, nn.Module], images: Tensor, device: str, decoding: float) -> Embedded:
    """A block of images [k, c, h, w] under every encoder, decoded once for all of them in so many seconds."""
    there, features, seconds = images.to(device), {}, {DECODING: decoding}
    for name, encoder in encoders.items():
        began = time.perf_counter()
        features |= extract({name: encoder}, there, len(there))  # which waits for the device
        seconds[f".{name}"] = time.perf_counter() - began
        if features[name].ndim != 2 or len(features[name]) != len(images):
            raise ValueError(f"Encoder '{name}' made {list(features[name].shape)} of {len(images)} images, not [n, d].")
    return Embedded(features, thumbnails(images), seconds)


class Spent:
    """What work on images was spent on, for people."""

    def __init__(self) -> None:
        self._images, self._began, self._seconds = 0, time.monotonic(), Counter[str]()

    def add(self, images: int, seconds: Mapping[str, float]) -> None:
        """So many more images took this."""
        self._images += images
        self._seconds.update(seconds)

    def __str__(self) -> str:
        """Images a second, of the share of the work that was decoding, and of each encoder alone."""
        if not self._images:
            return "no images"
        lasted, work = time.monotonic() - self._began, sum(self._seconds.values())
        encoders = {name[1:]: seconds for name, seconds in self._seconds.items() if name != DECODING}
        each = ", ".join(f"{name} {_rate(self._images, seconds)}" for name, seconds in encoders.items())
        return (
            f"{self._images} images in {duration(lasted)}, {_rate(self._images, lasted)} a second; decoding was "
            f"{self._seconds[DECODING] / max(work, 1e-9):.0%} of the work; images a second of an encoder's own time: "
            f"{each}"
        )


def _rate(images: int, seconds: float) -> str:
    return f"{images / max(seconds, 1e-9):.3g}"
