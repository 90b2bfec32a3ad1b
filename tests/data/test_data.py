"""Datasets: splits, fingerprints, and what is refused."""

import numpy as np
import pytest
import torch

from irdm.data import ArrayConfig, DigitsConfig


@pytest.fixture(scope="module")
def digits():
    return DigitsConfig().build()


def test_digits_are_split_by_class(digits):
    assert digits.image_shape == (1, 8, 8) and digits.num_classes == 10 and digits.class_names[3] == "3"
    parts = (digits.train, digits.val, digits.test)
    assert sum(map(len, parts)) == 1797
    shares = [part.labels.bincount(minlength=10) / len(part) for part in parts]
    assert all((share - shares[0]).abs().max() < 0.01 for share in shares)
    for part in parts:
        assert part.images.dtype == torch.float32 and part.images.min() >= 0 and part.images.max() == 1
        assert (part.labels.diff() != 0).float().mean() > 0.8, "rows must not be sorted by class"


def test_splits_share_no_row(digits):
    rows = torch.cat([part.images.flatten(1) for part in (digits.train, digits.val, digits.test)])
    _, counts = rows.unique(dim=0, return_counts=True)
    from sklearn.datasets import load_digits

    assert counts.max() == torch.from_numpy(load_digits().data).unique(dim=0, return_counts=True)[1].max()


def test_fingerprint_is_of_content(digits):
    assert DigitsConfig().build().fingerprint == digits.fingerprint
    assert DigitsConfig(split_seed=1).build().fingerprint != digits.fingerprint


@pytest.fixture
def save(tmp_path):
    def write(**arrays):
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays)
        return ArrayConfig(path=path)

    return write


LABELS = np.arange(60) % 3
PIXELS = np.random.default_rng(0).random((60, 6, 8))


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        (PIXELS, (1, 6, 8)),
        (PIXELS[..., None], (1, 6, 8)),
        (PIXELS[:, None].repeat(3, 1), (3, 6, 8)),
        (np.stack([PIXELS] * 3, -1), (3, 6, 8)),
        ((PIXELS * 255).astype(np.uint8), (1, 6, 8)),
    ],
)
def test_array_layouts_agree(save, images, shape):
    found, plain = save(images=images, labels=LABELS).build(), save(images=PIXELS, labels=LABELS).build()
    assert found.image_shape == shape and found.num_classes == 3
    assert torch.equal(found.train.labels, plain.train.labels)
    assert torch.allclose(found.train.images, plain.train.images.expand_as(found.train.images), atol=1 / 255)


def test_without_labels_there_is_one_class(tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, PIXELS)
    assert ArrayConfig(path=path).build().num_classes == 1


NAN = PIXELS.copy()
NAN[5, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": NAN}, "1 of 60 images hold NaN"),
        ({"images": PIXELS * 255}, "x / 255"),
        ({"images": PIXELS * 2 - 1}, r"\(x \+ 1\) / 2"),
        ({"images": PIXELS.astype(np.int64)}, "int64"),
        ({"images": PIXELS[0]}, r"shape \[6, 8\]"),
        ({"images": PIXELS.reshape(60, 2, 3, 8)}, r"shape \[60, 2, 3, 8\]"),
        ({"images": PIXELS[:, :2]}, "h, w >= 4"),
        ({"images": PIXELS[:0]}, r"\[0, 1, 6, 8\]"),
        ({"pictures": PIXELS}, "'pictures'"),
        ({"images": PIXELS, "labels": LABELS[:9]}, r"shape \[9\]"),
        ({"images": PIXELS, "labels": LABELS / 2}, "float64"),
        ({"images": PIXELS, "labels": LABELS + 1}, "from 1 to 3"),
        ({"images": PIXELS, "labels": LABELS * 2}, "Renumber"),
        ({"images": PIXELS, "labels": np.r_[LABELS[:-1], 3]}, r"class 3 \(3\) has 1 row"),
        ({"images": np.array([{"a": 1}], dtype=object)}, "pickled objects are refused"),
    ],
)
def test_bad_arrays_are_refused(save, arrays, message):
    with pytest.raises(ValueError, match=message):
        save(**arrays).build()


@pytest.mark.parametrize("content", [None, b"", b"not an array", b"PK\x03\x04cut short"])
def test_bad_files_are_refused(tmp_path, content):
    path = tmp_path / "mine.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="mine.npz"):
        ArrayConfig(path=path).build()
