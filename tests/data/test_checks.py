"""What real and judged images must be: refused in a line, before anything is fitted."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.conditions import Unconditional
from irdm.data import Dataset, ImagesConfig, TensorSplit, open_source
from irdm.data.checks import check_beside, check_judged, check_real, handling

DRAW = np.random.default_rng(0)


def write(folder, count, side=8, mode="RGB"):
    """Random pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = DRAW.integers(0, 256, (side, side, 4), dtype=np.uint8)
        Image.fromarray(pixels, "RGBA").convert(mode).save(folder / f"{number:03d}.png")
    return folder


def of(train, val, **fields):
    return ImagesConfig(train=train, val=val, **fields).build()


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sides")
    return write(folder / "train", 60), write(folder / "val", 50)


def test_good_images_pass_and_are_looked_at_once(sides, monkeypatch):
    dataset = of(*sides)
    assert check_real(dataset) == []
    monkeypatch.setattr("irdm.data.image_source.decode", lambda *_: pytest.fail("looked at again"))
    assert check_real(dataset) == [] and len(dataset.fingerprint) == 64


def test_a_look_says_how_far_it_is(sides, monkeypatch):
    monkeypatch.setattr("irdm.progress.EVERY", 0)
    said = []
    check_judged(open_source(sides[0]), said.append)
    assert said[0].startswith(f"reading {sides[0]}: 1 of 60 images, ") and said[0].endswith(" left")


def test_too_few_on_either_side(sides, tmp_path):
    few = write(tmp_path / "few", 48)
    with pytest.raises(ValueError, match=r"few has 48 val image\(s\); at least 50 of train and of val are needed"):
        check_real(of(sides[0], few))
    with pytest.raises(ValueError, match=r"few holds 48 image\(s\); an evaluation needs at least 50, and thousands"):
        check_judged(open_source(few))


def test_repeats(sides, tmp_path):
    """One picture, a few over and over, and more repeats than pictures are refused; some repeats are not."""
    one = tmp_path / "one"
    one.mkdir()
    for number in range(60):
        shutil.copy(sides[0] / "000.png", one / f"{number}.png")
    with pytest.raises(ValueError, match="one has 60 train images, but only one picture, over and over"):
        check_real(of(one, sides[1]))
    with pytest.raises(ValueError, match="one holds 60 images, but only one picture, over and over"):
        check_judged(open_source(one))
    with pytest.raises(ValueError, match="one has 30 train images, but only one picture, over and over"):
        check_real(ImagesConfig(path=one, val_fraction=0.5, drop_shared=True).build())
    many = shutil.copytree(sides[0], tmp_path / "many")
    for turn in range(2):
        for path in sides[0].iterdir():
            shutil.copy(path, many / f"{turn}-{path.name}")
    with pytest.raises(ValueError, match="many has 180 train images, but only 60 different ones"):
        check_real(of(many, sides[1]))
    check_judged(open_source(many))  # a generator's repeats are what it is judged for
    for path in list(many.glob("1-*")):
        path.unlink()
    check_real(of(many, sides[1]))


def test_one_side_that_is_the_other(sides):
    with pytest.raises(ValueError, match="60 of the 60"):
        check_real(of(sides[0], sides[0]))
    images = torch.rand(50, 1, 4, 4)
    split = TensorSplit(images, Unconditional(50), "mine")
    with pytest.raises(ValueError, match="50 of the 50"):
        check_real(Dataset("mine", split, TensorSplit(images.clone(), Unconditional(50))))


def test_broken_files_of_either_side_are_all_named(sides, tmp_path):
    val = shutil.copytree(sides[1], tmp_path / "val")
    for name in ("003.png", "044.png"):
        (val / name).write_bytes((val / name).read_bytes()[:70])
    with pytest.raises(ValueError, match=r"2 of 50 images cannot be used:\n(.|\n)*003.png(.|\n)*044.png"):
        check_real(of(sides[0], val, size=8, channels=3))
    with pytest.raises(ValueError, match="2 of 50 images cannot be used"):
        check_judged(open_source(val))


def test_sides_that_were_prepared_in_unlike_ways(sides, tmp_path):
    large, grey = write(tmp_path / "large", 50, side=16), write(tmp_path / "grey", 50, mode="L")
    with pytest.raises(ValueError, match="train are 8 x 8 and those of .*large 16 x 16; expected the same of both"):
        check_real(of(sides[0], large, size=8))
    with pytest.raises(ValueError, match="train are in colour and those of .*grey grey; expected the same of both"):
        check_real(of(sides[0], grey))
    assert len(check_real(of(sides[0], grey, channels=1))) == 1, "both are made grey, which is said"


def test_what_is_done_to_images_is_said(sides, tmp_path):
    assert handling(open_source(sides[0]), (3, 8, 8)) == []
    clear = open_source(write(tmp_path / "clear", 50, side=16, mode="RGBA"))
    resized, alpha = handling(clear, (3, 8, 8))
    assert resized == "Images are 16 x 16: each is centre-cropped and resized to 8 x 8."
    assert alpha.startswith("50 of 50 images looked at have an alpha channel")
    (grey,) = handling(open_source(write(tmp_path / "grey", 50, mode="L")), (3, 8, 8))
    assert grey.startswith("Images are grey, where colour is expected")
    (colour,) = handling(open_source(sides[0]), (1, 8, 8))
    assert colour.startswith("60 of 60 images looked at are stored in colour, where grey is expected")


def test_judged_images_are_looked_at_beside_the_real_ones_before_anything_is_fitted(sides, tmp_path):
    real, judged = of(sides[0], sides[1]), write(tmp_path / "judged", 90)
    assert check_beside(open_source(judged), real) == [
        f"90 images are judged, and {len(real.val)} are held out: a ratio compares draws of at most "
        f"{len(real.val) // 2}, and scores of nearest neighbours take {len(real.val)} of the judged images."
    ]
    for number, side in enumerate((*sides, judged)):
        shutil.copy(side / "000.png", tmp_path / "judged" / f"more{number}.png")
    repeated, train, held_out, _ = check_beside(open_source(judged), real)
    assert repeated == "1 of the 93 judged images are repeats of others, to the pixel."
    assert train.startswith("1 of the 93 judged images are train images of")
    assert held_out.startswith("1 of the 93 judged images are held-out images of")
    with pytest.raises(ValueError, match=f"All {len(real.val)} images of .* are held-out images of"):
        check_beside(open_source(sides[1]), real)
