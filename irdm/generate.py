"""Images from a generator and conditions: the one loop that samples, judges and shows."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from irdm.conditions import Conditions
from irdm.data.base import Split
from irdm.files import hash_of
from irdm.generators import Generator
from irdm.images import image_grid
from irdm.ops.sampling import NOISE_BLOCK, normal_rows

LARGE = 64  # pixels a side above which a picture of many images holds fewer of them
ROUNDING = 1e-3  # how far outside [0, 1] an image may lie


class Drawn(Split):
    """The images that a generator draws for conditions, made as they are read, and rounded to 8 bits as files are.

    Image i depends, to rounding, on the seed, i and its condition alone: a longer draw begins with the shorter one, and
    neither the micro-batch nor the number of ranks matters.
    """

    def __init__(
        self, generator: Generator, conditions: Conditions, shape: tuple[int, int, int], seed: int, *,
        device: str = "cpu", identity: str = "", name: str = "generated",
    ):  # fmt: skip
        """`identity` says which weights these are, for the fingerprint."""
        self.generator, self.conditions, self.image_shape = generator, conditions, shape
        self.seed, self.device, self.identity, self.name = seed, device, identity, name
        self._block: tuple[int, Tensor] | None = None

    @torch.no_grad()
    def read(self, rows: Int64[Tensor, " k"]) -> Float32[Tensor, "k c h w"]:
        """Raises ValueError for images that are not finite or outside [0, 1]."""
        training = self.generator.training
        self.generator.eval()
        try:
            inputs = self.conditions[rows].inputs(self.device)
            images = self.generator(self._noise(rows).to(self.device), **inputs).float().cpu()
        finally:
            self.generator.train(training)
        if bad := int((~images.isfinite()).flatten(1).any(1).sum()):
            raise ValueError(f"The generator returned NaN or infinity in {bad} of {len(images)} images; it diverged.")
        low, high = images.min().item(), images.max().item()
        if low < -ROUNDING or high > 1 + ROUNDING:
            raise ValueError(
                f"Generated images span {low:g} to {high:g}, expected 0 to 1. End the generator with a sigmoid."
            )
        return (images.clamp(0, 1) * 255).round() / 255

    @property
    def fingerprint(self) -> str:
        """Of the weights' identity, the conditions and the seed: the images need not be drawn."""
        return hash_of([self.identity, self.seed, self.conditions.fingerprint, len(self)])

    def _noise(self, rows: Int64[Tensor, " k"]) -> Tensor:
        shape = self.generator.noise_shape
        noise = torch.empty(len(rows), *shape)
        blocks = rows // NOISE_BLOCK
        for block in blocks.unique().tolist():
            first = block * NOISE_BLOCK
            if self._block is None or self._block[0] != block:  # a micro-batch may be a part of a block
                self._block = block, normal_rows(slice(first, first + NOISE_BLOCK), shape, "sample", self.seed)
            here = blocks == block
            noise[here] = self._block[1][rows[here] - first]
        return noise


def sample_grid(
    generator: Generator, spec, shape: tuple[int, int, int], seed: int, micro_batch: int, device: str
) -> UInt8[np.ndarray, "H W c"]:
    """A picture of ten images of each class (of many classes, some evenly spaced), the same noise at every call."""
    columns, most = (10, 20) if max(shape[1:]) <= LARGE else (5, 12)
    conditions = spec.each(columns, most)
    if len(conditions) == columns:  # one row of pictures would be little to look at
        conditions = spec.each(columns * columns, most)
    drawn = Drawn(generator, conditions, shape, seed, device=device)
    return image_grid(torch.cat(list(drawn.blocks(micro_batch))), columns)
