"""Resizing against Pillow's."""

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.encoders.resizing import RESIZES


def pictures(n: int, side: int):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("side", "target"), [(64, 28), (20, 33)])
def test_resizing_is_that_of_pillow(mode, side, target):
    images = pictures(2, side)
    resized = RESIZES[mode](images, target)
    for picture, plane in zip(resized.flatten(0, 1), images.flatten(0, 1), strict=True):
        expected = Image.fromarray(plane.numpy()).resize((target, target), Image.Resampling[mode.upper()])
        assert np.abs(picture.numpy() - np.asarray(expected)).max() < 1e-5


def test_an_image_of_the_right_size_is_not_touched():
    images = pictures(1, 24)
    assert RESIZES["bicubic"](images, 24) is images
