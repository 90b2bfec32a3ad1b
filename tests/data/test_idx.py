"""The four files of MNIST and its like, written here as their authors describe them."""

import gzip
import struct

import numpy as np
import pytest
import torch

from irdm.data import IdxConfig
from irdm.data.idx import CLOTHES, DEBIAN
from irdm.presets import PRESETS, limited

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (30, 6, 5)), np.arange(30) % 3]
    arrays += [generator.integers(0, 256, (12, 6, 5)), np.arange(12) % 3]
    for number, (name, array) in enumerate(zip(FILES, arrays, strict=True)):
        if number % 2:
            (tmp_path / name).write_bytes(idx(array))
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    tmp_path.joinpath("arrays.npz").write_bytes(b"")
    return tmp_path, arrays


def test_the_published_parts_are_train_and_val(folder):
    path, (train, labels, val, _) = folder
    dataset = IdxConfig(path=path, names=("a", "b", "c")).build()
    assert (len(dataset.train), len(dataset.val), dataset.image_shape) == (30, 12, (1, 6, 5))
    rows = {tuple(row.flatten().tolist()): label for row, label in zip(train, labels, strict=True)}
    pixels = (dataset.train.images * 255).round().to(torch.int64).flatten(1)
    assert [rows[tuple(row.tolist())] for row in pixels] == dataset.train.conditions.strata.tolist()
    assert set(dataset.val.conditions.captions()) == {"a", "b", "c"} and len(val) == 12
    few = IdxConfig(path=path, limit=6).build()
    assert len(few.train) == len(few.val) == 6 and few.train.conditions.strata.bincount().tolist() == [2, 2, 2]
    assert few.train.conditions.captions()[0] in "012"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train-labels-idx1-ubyte", lambda old: old[:-3], "holds 27 bytes where its shape .30. needs 30"),
        ("train-labels-idx1-ubyte", lambda old: b"", "no idx file of bytes: it begins with nothing"),
        ("train-labels-idx1-ubyte", lambda old: b"\0\0\x0d" + old[3:], "no idx file of bytes: it begins with 00 00 0d"),
        ("train-images-idx3-ubyte.gz", lambda old: old[:-9], "cannot be unpacked"),
        ("train-images-idx3-ubyte.gz", lambda old: gzip.compress(idx(np.zeros(30))), "may have been swapped"),
        ("t10k-images-idx3-ubyte.gz", lambda old: gzip.compress(idx(np.zeros((12, 7, 5)))), "held-out ones .1, 7, 5."),
        ("t10k-labels-idx1-ubyte", lambda old: None, "expected one file t10k-labels-idx.*found none"),
    ],
)
def test_a_file_that_does_not_fit_is_named(folder, name, content, said):
    path = folder[0] / name
    new = content(path.read_bytes())
    path.unlink()
    if new is not None:
        path.write_bytes(new)
    with pytest.raises(ValueError, match=said):
        IdxConfig(path=folder[0]).build()


def test_other_mistakes_are_named(folder):
    for names, apt in (((), False), (CLOTHES, True)):
        with pytest.raises(ValueError, match="There is no folder.*nowhere; expected .*t10k-labels") as caught:
            IdxConfig(path=folder[0] / "nowhere", names=names).build()
        assert ("apt install dataset-fashion-mnist" in str(caught.value)) == apt
    with pytest.raises(ValueError, match="labels go up to 2, but there are names for 2 classes"):
        IdxConfig(path=folder[0], names=("a", "b")).build()


def test_images_in_the_place_of_labels_are_refused(folder):
    path = folder[0]
    images, labels = path / f"{FILES[0]}.gz", path / FILES[1]
    unpacked = gzip.decompress(images.read_bytes())
    images.write_bytes(gzip.compress(labels.read_bytes()))
    labels.write_bytes(unpacked)
    with pytest.raises(ValueError, match="may have been swapped"):
        IdxConfig(path=path).build()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_fashion_preset_reads_the_published_files():
    data = PRESETS["fashion"]().data.build()
    assert (len(data.train), len(data.val), data.image_shape) == (60_000, 10_000, (1, 28, 28))
    assert data.train.conditions.names == CLOTHES
    labels = data.train.conditions.labels
    assert labels.bincount().tolist() == [6000] * 10
    # Trousers are narrow, and both kinds of shoe that have no shaft are flat: their names are in the right order.
    filled = torch.stack([data.train.images[labels == number].mean(0)[0] > 0.1 for number in range(10)])
    wide, tall = filled.any(1).sum(1), filled.any(2).sum(1)
    assert wide.argmin() == CLOTHES.index("trousers")
    assert {CLOTHES[number] for number in tall.argsort()[:2]} == {"sandal", "sneaker"}
    few = limited(PRESETS["fashion"](), 400).data.build()
    assert len(few.train) == len(few.val) == 400


def test_held_out_images_that_are_training_images_are_refused_or_left_out(folder):
    path, (train, _, val, _) = folder
    (path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.concatenate([train[:5], val[5:]]))))
    with pytest.raises(ValueError, match="5 of the 12 held-out images .* are also training images"):
        IdxConfig(path=path).build()
    assert len(IdxConfig(path=path, drop_shared=True).build().val) == 7
