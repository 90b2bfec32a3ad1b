"""Datasets: one file per kind, one union."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from irdm.data.base import Dataset, Split, TensorSplit, shared, split_dataset
from irdm.data.captioned import CaptionedConfig
from irdm.data.digits import DigitsConfig
from irdm.data.idx import IdxConfig
from irdm.data.image_source import printable
from irdm.data.images import ImagesConfig, Pictures, pictures_like
from irdm.data.sources import ImageSource, open_source
from irdm.data.spiral import SpiralConfig
from irdm.data.world import WorldConfig

AnyData = Annotated[
    CaptionedConfig | DigitsConfig | IdxConfig | ImagesConfig | SpiralConfig | WorldConfig, Field(discriminator="kind")
]

__all__ = [
    "AnyData",
    "CaptionedConfig",
    "Dataset",
    "DigitsConfig",
    "IdxConfig",
    "ImageSource",
    "ImagesConfig",
    "Pictures",
    "SpiralConfig",
    "Split",
    "TensorSplit",
    "WorldConfig",
    "open_source",
    "pictures_like",
    "printable",
    "shared",
    "split_dataset",
]
