"""The 1797 handwritten digits of 8x8 pixels that ship with scikit-learn: real data on every machine, offline."""

from __future__ import annotations

from typing import Literal

import torch

from irdm.conditions import Classes
from irdm.data.base import Dataset, SplitConfig, split_dataset


class DigitsConfig(SplitConfig):
    """scikit-learn's `load_digits` (UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, 1998)."""

    kind: Literal["digits"] = "digits"
    """Name of this kind of dataset."""

    def build(self) -> Dataset:
        """Images [n, 1, 8, 8] in [0, 1] (16 grey levels and black, rounded to k/255) with classes 0 to 9."""
        from sklearn.datasets import load_digits  # slow to import, and needed by this kind alone

        pixels, labels = load_digits(return_X_y=True)
        images = (torch.from_numpy(pixels).float() * (255 / 16)).round().reshape(-1, 1, 8, 8) / 255
        return split_dataset("digits", images, Classes(torch.from_numpy(labels).long(), tuple("0123456789")), self)
