"""Datasets: splits, fingerprints, and what is refused."""

import numpy as np
import pytest
import torch

from irdm.conditions import Unconditional
from irdm.data import DigitsConfig, ImagesConfig, SpiralConfig, TensorSplit, shared, split_dataset
from irdm.data.base import SplitConfig
from irdm.data.checks import check_real
from irdm.features import extract


@pytest.fixture(scope="module")
def digits():
    return DigitsConfig().build()


def test_digits_are_split_by_class(digits):
    assert digits.image_shape == (1, 8, 8) and digits.train.conditions.names == tuple("0123456789")
    parts = (digits.train, digits.val)
    assert sum(map(len, parts)) == 1797
    shares = [part.conditions.labels.bincount(minlength=10) / len(part) for part in parts]
    assert all((share - shares[0]).abs().max() < 0.01 for share in shares)
    for part in parts:
        assert part.images.dtype == torch.float32 and part.images.min() >= 0 and part.images.max() == 1
        assert torch.isin(part.images, torch.arange(256) / 255).all(), "8 bits: k/255 exactly"
        assert (part.conditions.labels.diff() != 0).float().mean() > 0.8, "rows must not be sorted by class"


def test_splits_share_no_row(digits):
    rows = torch.cat([part.images.flatten(1) for part in (digits.train, digits.val)])
    _, counts = rows.unique(dim=0, return_counts=True)
    from sklearn.datasets import load_digits

    assert counts.max() == torch.from_numpy(load_digits().data).unique(dim=0, return_counts=True)[1].max()


def test_fingerprint_is_of_content(digits):
    assert DigitsConfig().build().fingerprint == digits.fingerprint
    assert DigitsConfig(split_seed=1).build().fingerprint != digits.fingerprint


def test_a_limit_cuts_every_kind(save):
    data = DigitsConfig(limit=60).build()
    assert (len(data.train), len(data.val)) == (40, 20)
    assert data.train.conditions.labels.unique().tolist() == list(range(10))
    data = ImagesConfig(path=save(images=PIXELS, labels=LABELS).path, limit=12).build()
    assert (len(data.train), len(data.val)) == (9, 3)


def test_the_points_of_a_spiral_have_no_condition():
    data = SpiralConfig(points=20).build()
    assert data.image_shape == (64, 1, 1) and isinstance(data.train.conditions, Unconditional)
    assert len(data.train) == len(data.val) == 20 and shared(data.train, data.val) == 0


def test_duplicates_are_counted_and_too_many_refused_or_left_out():
    images = torch.arange(200.0)[:, None, None, None].expand(-1, 1, 4, 4) / 255
    one = TensorSplit(images[100:].clone(), Unconditional(100))
    one.images[7] = images[3]
    assert shared(TensorSplit(images[:100], Unconditional(100)), one) == 1, "one in a hundred is natural"
    some = torch.cat([images, images[:40]])
    with pytest.raises(ValueError, match=r"held-out images of some .val. are also .*: image \d+, .*--data.drop-shared"):
        split_dataset("some", some, Unconditional(240), SplitConfig())
    data, whole = (
        split_dataset("some", part, Unconditional(len(part)), SplitConfig(drop_shared=True)) for part in (some, images)
    )
    assert shared(data.train, data.val) == 0 and 40 < len(data.val) < 80 and len(data.train) == 160
    assert len(whole.val) == 67, "nothing is left out where nothing is shared"
    with pytest.raises(ValueError, match="held-out images of twice .val. are also training images"):
        split_dataset("twice", images.repeat(8, 1, 1, 1), Unconditional(240), SplitConfig())


def test_split_and_pictures_say_the_same(digits):
    rows = torch.tensor([3, 1, 3])
    assert torch.equal(digits.train.read(rows), digits.train.images[rows])
    assert torch.equal(torch.cat(list(digits.train.blocks(100))), digits.train.images)
    moved = TensorSplit(digits.train.images, digits.train.conditions[torch.arange(len(digits.train)).flip(0)])
    assert moved.fingerprint != digits.train.fingerprint, "the same images of other classes"


def test_features_in_micro_batches(digits):
    images = digits.val.images[:10]
    flat = {"flat": torch.nn.Flatten()}
    assert torch.equal(extract(flat, images, 3)["flat"], images.flatten(1))
    for micro_batch in (0, -1):
        with pytest.raises(ValueError, match=f"micro-batch of {micro_batch}"):
            extract(flat, images, micro_batch)


@pytest.fixture
def save(tmp_path):
    def write(name="mine", /, **arrays):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **arrays)
        return ImagesConfig(path=path)

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
    found = save("mine", images=images, labels=LABELS).build()
    plain = save("plain", images=PIXELS, labels=LABELS).build()
    assert found.image_shape == shape and found.train.conditions.names == ("0", "1", "2")
    assert torch.equal(found.train.conditions.labels, plain.train.conditions.labels)
    assert torch.isin(found.train.images, torch.arange(256) / 255).all(), "8 bits: k/255 exactly"
    assert torch.allclose(found.train.images, plain.train.images.expand_as(found.train.images), atol=1 / 255)


def test_floats_are_rounded_to_eight_bits(save):
    found = save(images=PIXELS).build()
    pixels = {image.tobytes() for image in (PIXELS * 255).round().astype(np.uint8)}
    assert {(image * 255).round().to(torch.uint8).numpy().tobytes() for image in found.train.images} < pixels


def test_without_labels_or_with_one_class_there_is_no_condition(tmp_path, save):
    path = tmp_path / "mine.npy"
    np.save(path, PIXELS)
    for config in (ImagesConfig(path=path), save(images=PIXELS, labels=LABELS * 0)):
        assert isinstance(config.build().train.conditions, Unconditional)


def test_an_array_with_many_duplicates_is_refused(save):
    with pytest.raises(ValueError, match="are also training images"):
        check_real(save(images=PIXELS[:36].repeat(2, 0)).build(), fewest=8)


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
        ({"images": PIXELS[:0]}, r"shape \[0, 6, 8\]"),
        ({"pictures": PIXELS}, "'pictures'"),
        ({"images": PIXELS, "labels": LABELS[:9]}, r"shape \[9\]"),
        ({"images": PIXELS, "labels": LABELS / 2}, "float64"),
        ({"images": PIXELS, "labels": LABELS + 1}, "labels take 3 values up to 3"),
        ({"images": PIXELS, "labels": LABELS * 2}, "Renumber"),
        ({"images": PIXELS, "labels": np.r_[LABELS[:-1], 3]}, "3 has 1 row"),
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
        ImagesConfig(path=path).build()
