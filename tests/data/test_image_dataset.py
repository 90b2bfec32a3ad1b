"""The dataset kind `images`: pictures from folders as train and val, read when they are asked for."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.data import ImagesConfig, open_source, pictures_like, shared
from irdm.data.sources import FolderSource

RNG = np.random.default_rng(0)
SHADE = {"cat": 40, "dog": 120, "eel": 200}  # every class has its own brightness, so that labels can be checked


def write(path, per_class, classes=SHADE, shape=(20, 24, 3)):
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(per_class[name] if isinstance(per_class, dict) else per_class):
            noise = RNG.integers(-9, 10, shape)
            Image.fromarray((SHADE[name] + noise).astype(np.uint8)).save(path / name / f"{i:03d}.png")
    return path


def fits(split):
    """Whether every picture has the brightness of its label, and rows are not sorted by class."""
    labels = split.conditions.labels
    shade = torch.tensor([40.0, 120.0, 200.0])[labels] / 255
    assert ((split.images.mean((1, 2, 3)) - shade).abs() < 0.02).all()
    assert (labels.diff() != 0).float().mean() > 0.3
    return labels.bincount(minlength=3).tolist()


def test_one_folder_is_split_by_class(tmp_path):
    config = ImagesConfig(path=write(tmp_path / "pets", {"cat": 12, "dog": 18, "eel": 24}), size=16)
    dataset = config.build()
    assert dataset.name == "pets" and dataset.train.conditions.names == ("cat", "dog", "eel")
    assert dataset.image_shape == dataset.val.image_shape == (3, 16, 16)
    assert [fits(part) for part in (dataset.train, dataset.val)] == [[8, 12, 16], [4, 6, 8]]
    assert dataset.train.images.dtype == torch.float32
    again = config.build()
    assert again.fingerprint == dataset.fingerprint and torch.equal(again.train.images, dataset.train.images)
    assert config.model_copy(update={"split_seed": 1}).build().fingerprint != dataset.fingerprint


def test_a_folder_each(tmp_path):
    train, val = write(tmp_path / "train", 10), write(tmp_path / "val", 6)
    dataset = ImagesConfig(train=train, val=val, size=16).build()
    assert [fits(part) for part in (dataset.train, dataset.val)] == [[10] * 3, [6] * 3]
    short = ImagesConfig(train=train, val=val, size=16, limit=9).build()
    assert [fits(part) for part in (short.train, short.val)] == [[3] * 3, [3] * 3]


def test_a_limit_keeps_the_shares_and_follows_the_seed(tmp_path):
    path = write(tmp_path / "pets", {"cat": 10, "dog": 20, "eel": 30})
    config = ImagesConfig(path=path, size=8, limit=30)
    dataset = config.build()
    counts = torch.tensor([part.conditions.labels.bincount().tolist() for part in (dataset.train, dataset.val)])
    assert counts.sum(0).tolist() == [5, 10, 15]
    assert config.build().fingerprint == dataset.fingerprint
    pictures = lambda d: {*d.train.digests, *d.val.digests}  # noqa: E731
    assert pictures(config.model_copy(update={"split_seed": 5}).build()) != pictures(dataset)
    assert len(ImagesConfig(path=path, size=8, limit=1000).build().train) == 40


def test_one_class_is_no_condition(tmp_path):
    nested = write(tmp_path / "pets", 9, classes=["cat"])
    for path in (nested, nested / "cat"):
        dataset = ImagesConfig(path=path, size=8).build()
        assert dataset.train.conditions.strata is None and len(dataset.train) == 6


def test_pixels_are_those_of_the_file(tmp_path):
    path = write(tmp_path / "pets", 9, classes=["cat"])
    dataset = ImagesConfig(path=path, size=20).build()
    wanted = {np.asarray(Image.open(file))[:, 2:22].tobytes() for file in path.rglob("*.png")}
    found = [(s.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy() for s in
             (dataset.train, dataset.val)]  # fmt: skip
    assert {image.tobytes() for part in found for image in part} == wanted
    levels = torch.arange(256) / 255
    assert torch.isin(dataset.train.images, levels).all(), "8 bits: k/255 exactly"


def test_grey_stays_grey_and_can_be_asked_for(tmp_path):
    grey, colour = write(tmp_path / "grey", 6, shape=(12, 12)), write(tmp_path / "colour", 6, shape=(12, 12, 3))
    assert ImagesConfig(path=grey).build().image_shape == (1, 12, 12)
    assert ImagesConfig(train=grey, val=colour).build().image_shape == (3, 12, 12)
    assert ImagesConfig(path=grey, channels=3).build().train.images.shape[1:] == (3, 12, 12)
    dataset = ImagesConfig(path=colour, channels=1).build()
    assert dataset.train.images.shape[1:] == (1, 12, 12)
    like = pictures_like(open_source(colour), ImagesConfig(path=grey).build().image_shape, torch.tensor([3, 1]))
    assert like.images.shape == (2, 1, 12, 12)


def test_the_size_is_that_of_the_images_if_there_is_one(tmp_path):
    path = write(tmp_path / "square", 6, shape=(12, 12, 3))
    assert ImagesConfig(path=path).build().image_shape == (3, 12, 12)
    Image.new("RGB", (9, 9)).save(path / "cat" / "z.png")
    with pytest.raises(ValueError, match=r"12 x 12, 9 x 9; expected one size.*Give a size .*--size 32"):
        ImagesConfig(path=path).build()
    assert ImagesConfig(path=write(tmp_path / "wide", 6)).build().image_shape == (3, 20, 24)
    assert ImagesConfig(path=path, size=8).build().image_shape == (3, 8, 8)


def test_what_does_not_fit_is_refused(tmp_path):
    train = write(tmp_path / "train", 6)
    for given in ({}, {"train": train}, {"path": train, "val": train}, {"val": train}):
        with pytest.raises(ValueError, match="either path, or train and val"):
            ImagesConfig(**given)
    other = write(tmp_path / "other", 6, classes=["cat", "dog"])
    for first, second in ((train, other), (other, train), (train, other / "cat")):
        with pytest.raises(ValueError, match="'eel'"):
            ImagesConfig(train=first, val=second, size=8).build()
    with pytest.raises(ValueError, match="eel has 1 row"):
        ImagesConfig(path=write(tmp_path / "few", {"cat": 6, "dog": 6, "eel": 1}), size=8).build()
    (train / "dog" / "000.png").write_bytes(b"not a picture")
    dataset = ImagesConfig(path=train, size=8).build()
    with pytest.raises(ValueError, match="dog/000.png"):
        [part.images for part in (dataset.train, dataset.val)]


def test_only_the_images_of_a_split_are_looked_through_for_damage(tmp_path):
    path = write(tmp_path / "pets", 8)
    dataset = ImagesConfig(path=path, size=8).build()
    for row in dataset.train.rows[:2].tolist():
        (path / dataset.train.source.names[row]).write_bytes(b"")
    (path / dataset.val.source.names[int(dataset.val.rows[0])]).write_bytes(b"")
    with pytest.raises(ValueError, match=f"2 of {len(dataset.train)} images cannot be used"):
        dataset.train.read(torch.arange(4))


def test_pictures_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    read = []
    real = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda self, row: (read.append(self.names[row]), real(self, row))[1])
    dataset = ImagesConfig(path=write(tmp_path / "pets", 12), size=16, channels=3).build()
    assert dataset.image_shape == (3, 16, 16) and dataset.train.conditions.labels.bincount().tolist() == [8, 8, 8]
    assert not read, "building, counting and the labels need no picture"

    some = dataset.train.read(torch.tensor([5, 0, 5]))
    assert len(read) == 3 and len(set(read)) == 2
    assert torch.equal(some, dataset.train.images[[5, 0, 5]])
    assert len(read) == 3 + 24
    assert dataset.train.images is dataset.train.images and len(read) == 27, "kept once they are there"
    assert len(dataset.fingerprint) == 64 and shared(dataset.train, dataset.val) == 0
    assert len(read) == 27 + 36, "fingerprint and duplicates share one reading"


def test_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    dataset = ImagesConfig(path=write(tmp_path / "pets", 6), size=64).build()
    monkeypatch.setattr("irdm.data.images.physical_memory", lambda: 4 * 12 * 3 * 64 * 64 - 1)
    with pytest.raises(ValueError, match="--data.limit"):
        dataset.train.images  # noqa: B018
    assert dataset.train.read(torch.tensor([0])).shape == (1, 3, 64, 64)


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
    for change in ({"size": 9}, {"channels": 1}):
        assert config.model_copy(update=change).build().fingerprint != first
    (tmp_path / "pets" / "dog").rename(tmp_path / "pets" / "dolphin")
    assert config.build().fingerprint != first, "the same images of another class"


def test_duplicates_are_counted_and_too_many_refused(tmp_path):
    train, val = write(tmp_path / "train", 6), write(tmp_path / "val", 6)
    dataset = ImagesConfig(train=train, val=val, size=8).build
    assert shared(dataset().train, dataset().val) == 0
    for i in range(8):
        (val / "cat" / f"copy{i}.png").write_bytes((train / list(SHADE)[i % 3] / f"00{i // 3}.png").read_bytes())
    found = dataset()
    with pytest.raises(ValueError, match=r"8 of the 26 held-out images of .*val/cat/copy\d.png, .*, \.\.\."):
        shared(found.train, found.val)
    apart = ImagesConfig(train=train, val=val, size=8, drop_shared=True).build()
    assert (shared(apart.train, apart.val), len(apart.val), len(apart.train)) == (0, 18, 18)
    assert not any("copy" in name for name in apart.val.called(range(18)))
    with pytest.raises(ValueError, match="18 of the 18 held-out images of .*train are also training images"):
        shared(found.train, pictures_like(open_source(train), found.image_shape))


def test_modes_of_all_kinds_in_one_folder_are_one_data_set(tmp_path):
    """Palette, 16 bit, CMYK, alpha and one bit become colour alike."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 12, 12), np.uint8)
    modes = {"P": "gif", "CMYK": "jpg", "RGBA": "png", "LA": "png", "1": "png", "L": "png", "RGB": "png"}
    for number, pixels in enumerate(grey):
        image, mode = Image.fromarray(pixels), [*modes, "16"][number % 8]
        image = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "16" else image.convert(mode)
        image.save(tmp_path / f"{number:02d}.{modes.get(mode, 'png')}")
    dataset = ImagesConfig(path=tmp_path).build()
    assert dataset.image_shape == (3, 12, 12)
    places = [dataset.train.source.names[row] for row in dataset.train.rows.tolist()]
    for image, place in zip(dataset.train.images, places, strict=True):
        number = int(place[:2])
        if [*modes, "16"][number % 8] in ("P", "RGBA", "LA", "L", "RGB", "16"):
            assert ((image * 255).round().numpy() == grey[number]).all(), place


@pytest.mark.parametrize("place", ["eel", "cat/kittens"])
def test_an_empty_class_folder_is_named(tmp_path, place):
    path = write(tmp_path / "pets", 6, classes=["cat", "dog"])
    (path / place).mkdir()
    (path / place / ".DS_Store").write_bytes(b"")
    with pytest.raises(ValueError, match=f"{place} is an empty folder: a class without images"):
        ImagesConfig(path=path, size=8).build()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_empty_class_folder_of_an_archive_is_named(tmp_path, kind):
    path = write(tmp_path / "pets", 6, classes=["cat", "dog"])
    whole = Path(shutil.make_archive(str(tmp_path / "whole"), kind, path))
    assert len(open_source(whole)) == 12
    (path / "eel").mkdir()
    (path / ".cache").mkdir()
    short = Path(shutil.make_archive(str(tmp_path / "short"), kind, path))
    with pytest.raises(ValueError, match=f"short.{kind} holds the empty folder eel/?: a class without images"):
        open_source(short)


def test_one_image_is_too_few(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"has 1 row\(s\), of which 0 would be held out.*Add images"):
        ImagesConfig(path=tmp_path).build()
