"""The battery that compares images as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from irdm.config import Config
from irdm.data.base import Dataset, Shape
from irdm.encoders.base import Battery, Encoder


class IdentityBatteryConfig(Config):
    """One encoder, whose features are the numbers of the image: for points, and for studies of the distance alone."""

    kind: Literal["identity"] = "identity"
    """Name of this kind of battery."""

    def fit(
        self, dataset: Dataset, *, cache_dir: Path | None = None, progress: Callable[[str], None] | None = None
    ) -> Battery:
        """Nothing is fitted or cached; the encoder trains the generator, and none is held out."""
        return self.restore(dataset.image_shape, {})

    def restore(self, image_shape: Shape, state: Mapping[str, Tensor]) -> Battery:
        """The battery for images of this shape; it has no state."""
        return Battery({"identity": Encoder("identity", math.prod(image_shape), nn.Flatten())}, ("identity",), ())
