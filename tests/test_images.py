"""Grids keep every pixel where it belongs, and a failed write leaves the old picture."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.images import image_grid, png_bytes, save_png


def test_cells_are_the_images_in_reading_order():
    images = torch.arange(5 * 2 * 2).reshape(5, 1, 2, 2) / 20
    grid = image_grid(images, columns=3, scale=2)
    assert grid.shape == (4 + 1 + 4, 3 * 4 + 2, 1) and grid.dtype == np.uint8
    for i in range(5):
        y, x = (i // 3) * 5, (i % 3) * 5
        cell = grid[y : y + 4 : 2, x : x + 4 : 2, 0]
        np.testing.assert_array_equal(cell, (images[i, 0] * 255).round().numpy().astype(np.uint8))
    assert (grid[4] == 255).all() and (grid[5:, 10:] == 255).all()  # gutter, and the missing sixth cell


@pytest.mark.parametrize(("side", "expected"), [(8, 48), (28, 56), (64, 64)])
def test_tiny_images_are_enlarged_until_they_can_be_seen(side, expected):
    assert image_grid(torch.zeros(1, 3, side, side), columns=1).shape == (expected, expected, 3)


@pytest.mark.parametrize(
    ("images", "columns", "message"),
    [
        (torch.zeros(2, 2, 8, 8), 1, "c = 1 or 3"),
        (torch.zeros(0, 1, 8, 8), 1, "n >= 1"),
        (torch.zeros(1, 1, 8, 8), 0, "at least 1"),
        (torch.full((1, 1, 8, 8), 1.5), 1, r"\[0, 1\]"),
        (torch.full((1, 1, 8, 8), torch.nan), 1, "finite"),
    ],
)
def test_bad_images_are_refused(images, columns, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, columns)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, channels, unchecked):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    save_png(tmp_path / "new" / "a.png", array)
    with Image.open(tmp_path / "new" / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture).reshape(array.shape), array)
    with pytest.raises(ValueError, match="uint8"):
        png_bytes(array.astype(np.float32))


def test_a_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path, black = tmp_path / "a.png", np.zeros((4, 4, 1), np.uint8)
    save_png(path, black)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_png(path, black + 255)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]
