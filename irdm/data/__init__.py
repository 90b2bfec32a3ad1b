"""Datasets: one file per kind, one table."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from irdm.data.array import ArrayConfig
from irdm.data.base import Dataset, Split, split_dataset
from irdm.data.digits import DigitsConfig

DATA = {"digits": DigitsConfig, "array": ArrayConfig}
AnyData = Annotated[DigitsConfig | ArrayConfig, Field(discriminator="kind")]

__all__ = ["DATA", "AnyData", "ArrayConfig", "Dataset", "DigitsConfig", "Split", "split_dataset"]
