"""The dataset kind `images`: folders of pictures as three labelled splits."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.data import ImagesConfig
from irdm.data.sources import FolderSource

RNG = np.random.default_rng(0)
SHADE = {"cat": 40, "dog": 120, "eel": 200}  # every class has its own brightness, so that labels can be checked


def write(path, per_class, suffix="png", classes=SHADE):
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(per_class[name] if isinstance(per_class, dict) else per_class):
            noise = RNG.integers(-9, 10, (20, 24, 3))
            Image.fromarray((SHADE[name] + noise).astype(np.uint8)).save(path / name / f"{i:03d}.{suffix}")
    return path


def fits(split):
    """Whether every picture has the brightness of its label, and rows are not sorted by class."""
    shade = torch.tensor([40.0, 120.0, 200.0])[split.labels] / 255
    assert ((split.images.mean((1, 2, 3)) - shade).abs() < 0.02).all()
    assert (split.labels.diff() != 0).float().mean() > 0.3
    return split.labels.bincount(minlength=3).tolist()


def test_one_folder_is_split_by_class(tmp_path):
    config = ImagesConfig(path=write(tmp_path / "pets", {"cat": 12, "dog": 18, "eel": 24}), size=16)
    dataset = config.build()
    assert dataset.name == "pets" and dataset.class_names == ("cat", "dog", "eel") and dataset.num_classes == 3
    assert dataset.image_shape == (3, 16, 16)
    assert [fits(part) for part in (dataset.train, dataset.val, dataset.test)] == [[8, 12, 16], [2, 3, 4], [2, 3, 4]]
    assert dataset.train.images.dtype == torch.float32
    again = config.build()
    assert again.fingerprint == dataset.fingerprint and torch.equal(again.train.images, dataset.train.images)
    assert config.model_copy(update={"split_seed": 1}).build().fingerprint != dataset.fingerprint


def test_a_folder_each_and_val_is_halved(tmp_path):
    train, val = write(tmp_path / "train", 10), write(tmp_path / "val", 6)
    dataset = ImagesConfig(train=train, val=val, size=16).build()
    assert [fits(part) for part in (dataset.train, dataset.val, dataset.test)] == [[10] * 3, [3] * 3, [3] * 3]
    rows = torch.cat([dataset.val.images, dataset.test.images]).flatten(1)
    assert len(rows.unique(dim=0)) == 18, "val and test share no picture"

    test = write(tmp_path / "test", 4)
    dataset = ImagesConfig(train=train, val=val, test=test, size=16).build()
    assert [fits(part) for part in (dataset.train, dataset.val, dataset.test)] == [[10] * 3, [6] * 3, [4] * 3]


def test_a_limit_keeps_the_shares_and_follows_the_seed(tmp_path):
    path = write(tmp_path / "pets", {"cat": 10, "dog": 20, "eel": 30})
    config = ImagesConfig(path=path, size=8, limit=30)
    dataset = config.build()
    counts = torch.tensor([part.labels.bincount().tolist() for part in (dataset.train, dataset.val, dataset.test)])
    assert counts.sum(0).tolist() == [5, 10, 15]
    assert config.build().fingerprint == dataset.fingerprint
    pictures = lambda d: {tuple(row.tolist()) for s in (d.train, d.val, d.test) for row in s.images.flatten(1)}  # noqa: E731
    assert pictures(config.model_copy(update={"split_seed": 5}).build()) != pictures(dataset)
    assert len(ImagesConfig(path=path, size=8, limit=1000).build().train) == 40


def test_a_flat_folder_is_one_class(tmp_path):
    flat = write(tmp_path / "pets", 9, classes=["cat"]) / "cat"
    dataset = ImagesConfig(path=flat, size=8).build()
    assert dataset.num_classes == 1 and len(dataset.train) == 5


def test_pixels_are_those_of_the_file(tmp_path):
    path = write(tmp_path / "pets", 9, classes=["cat"])
    dataset = ImagesConfig(path=path, size=20).build()
    wanted = {np.asarray(Image.open(file))[:, 2:22].tobytes() for file in path.rglob("*.png")}
    found = [(s.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy() for s in
             (dataset.train, dataset.val, dataset.test)]  # fmt: skip
    assert {image.tobytes() for part in found for image in part} == wanted


def test_what_does_not_fit_is_refused(tmp_path):
    train = write(tmp_path / "train", 6)
    for given in ({}, {"train": train}, {"path": train, "val": train}, {"val": train, "test": train}):
        with pytest.raises(ValueError, match="either path, or train and val"):
            ImagesConfig(**given)
    other = write(tmp_path / "other", 6, classes=["cat", "dog"])
    with pytest.raises(ValueError, match="'eel'"):
        ImagesConfig(train=train, val=other).build()
    with pytest.raises(ValueError, match="every class needs at least one row"):
        ImagesConfig(path=write(tmp_path / "few", {"cat": 6, "dog": 6, "eel": 2}), size=8).build()
    single = write(tmp_path / "single", 1, classes=["cat"])
    with pytest.raises(ValueError, match="holds 1 picture"):
        ImagesConfig(train=train / "cat", val=single, size=8).build()
    (train / "dog" / "000.png").write_bytes(b"not a picture")
    dataset = ImagesConfig(path=train).build()
    with pytest.raises(ValueError, match="dog/000.png"):
        [part.images for part in (dataset.train, dataset.val, dataset.test)]


def test_pictures_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    read = []
    real = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda self, row: (read.append(self.names[row]), real(self, row))[1])
    dataset = ImagesConfig(path=write(tmp_path / "pets", 12), size=16).build()
    assert dataset.image_shape == (3, 16, 16) and dataset.train.labels.bincount().tolist() == [8, 8, 8]
    assert not read, "building, counting and the labels need no picture"

    some = dataset.train.take(torch.tensor([5, 0, 5]))
    assert len(read) == 3 and len(set(read)) == 2
    assert torch.equal(some.images, dataset.train.images[[5, 0, 5]])
    assert torch.equal(some.labels, dataset.train.labels[[5, 0, 5]])
    assert len(read) == 3 + 24
    assert dataset.train.images is dataset.train.images and len(read) == 27, "kept once they are there"


def test_the_fingerprint_is_of_the_content(tmp_path):
    config = ImagesConfig(path=write(tmp_path / "pets", 9), size=8)
    first = config.build().fingerprint
    file = tmp_path / "pets" / "dog" / "003.png"
    time, data = file.stat().st_mtime_ns, file.read_bytes()
    file.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    os.utime(file, ns=(time, time))
    assert config.build().fingerprint != first, "one bit, the same name, size and time"
    file.write_bytes(data)
    assert config.build().fingerprint == first
    assert config.model_copy(update={"size": 9}).build().fingerprint != first
