"""A reference in seconds: small pictures and three small encoders."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

from irdm.data import Dataset, ImagesConfig
from irdm.distances import NystromMMDConfig
from irdm.encoders import Battery, Encoder
from irdm.reference import OpenReference, ReferenceConfig, build_reference

SIZE = 8
CONFIG = ReferenceConfig(rollout=64, distance=NystromMMDConfig(landmarks=32, kmeans_iterations=3), ladder=0)


def write_pictures(
    folder: Path, count: int, seed: int, *, blur: float = 0.0, side: int = SIZE, classes: int = 2
) -> Path:
    """Random smooth pictures with an edge, one folder a class; blurred ones are the same pictures, degraded."""
    draw = np.random.default_rng(seed)
    for i in range(count):
        tint = draw.normal(128, 40, 3)
        pixels = (
            tint
            + draw.normal(0, 35, (side, side, 3))
            + 60 * (i % classes) * (np.arange(side) > side // 2)[:, None, None]
        )
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        path = folder / "ab"[i % classes] / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (picture.filter(ImageFilter.GaussianBlur(blur)) if blur else picture).save(path)
    return folder


def tiny_battery(seed: int = 3) -> Battery:
    """Encoders of one's own, two that train and one that is held out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {
            "conv": nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(54, 6)),
            "pool": nn.Sequential(nn.AvgPool2d(4), nn.Flatten()),
            "mixed": nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Tanh()),
        }
    dims = {"conv": 6, "pool": 12, "mixed": 5}
    encoders = {name: Encoder(name, dims[name], network) for name, network in networks.items()}
    return Battery(encoders, ("conv", "pool"), ("mixed",))


def tiny_dataset(folder: Path, limit: int | None = None) -> Dataset:
    """The pictures of folder/train and folder/val."""
    return ImagesConfig(train=folder / "train", val=folder / "val", limit=limit).build()


def build_tiny(folder: Path, path: Path, config: ReferenceConfig = CONFIG, **options) -> OpenReference:
    """The reference of folder/train and folder/val at `path`."""
    battery = options.pop("battery", None) or tiny_battery()
    return build_reference("tiny", tiny_dataset(folder), battery, path, config, **options)


def content(path: Path) -> dict[str, bytes]:
    """Every visible file."""
    found = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def flip(path: Path, place: int = -9):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Folders train, val, fresh, and blurred: the fresh ones, degraded."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed, (split, count, blur) in enumerate(
        [("train", 160, 0.0), ("val", 160, 0.0), ("fresh", 128, 0.0), ("blurred", 128, 2.0)]
    ):
        write_pictures(folder / split, count, seed, blur=blur)
    return folder


@pytest.fixture(scope="session")
def built(pictures, tmp_path_factory):
    """A finished reference, which no test may alter."""
    return build_tiny(pictures, tmp_path_factory.mktemp("built") / "reference", command="irdm reference build tiny")


@pytest.fixture
def copied(built, tmp_path):
    """The directory of a finished reference, to be spoiled."""
    return shutil.copytree(built.path, tmp_path / "copied")
