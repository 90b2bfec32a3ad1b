"""Datasets: one file per kind, one table."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from irdm.data.array import ArrayConfig
from irdm.data.base import Dataset, Split, split_dataset
from irdm.data.digits import DigitsConfig
from irdm.data.images import ImagesConfig
from irdm.data.spiral import SpiralConfig

DATA = {"digits": DigitsConfig, "array": ArrayConfig, "images": ImagesConfig, "spiral": SpiralConfig}
AnyData = Annotated[DigitsConfig | ArrayConfig | ImagesConfig | SpiralConfig, Field(discriminator="kind")]

__all__ = [
    "DATA",
    "AnyData",
    "ArrayConfig",
    "Dataset",
    "DigitsConfig",
    "ImagesConfig",
    "SpiralConfig",
    "Split",
    "split_dataset",
]
