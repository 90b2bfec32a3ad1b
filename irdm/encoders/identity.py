"""The battery that compares images as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import nn

from irdm.config import Config
from irdm.data.base import Dataset
from irdm.encoders.base import Battery, Encoder


class IdentityBatteryConfig(Config):
    """One encoder, whose features are the numbers of the image: for points, and for studies of the distance alone."""

    kind: Literal["identity"] = "identity"
    """Name of this kind of battery."""

    def fit(
        self,
        dataset: Dataset,
        *,
        cache_dir: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Battery:
        """Nothing is fitted or cached; the encoder trains the generator, and none is held out."""
        return Battery(
            {"identity": Encoder("identity", math.prod(dataset.image_shape), nn.Flatten())}, ("identity",), ()
        )
