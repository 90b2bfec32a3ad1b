"""`irdm train folder` on one's own pictures: all the way without classes, and what cannot be used is said at once."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from irdm.cli import main
from irdm.evaluation import read_result
from irdm.run import load_run


def pictures(path, count, size=(16, 16), classes=("",)):
    """Smooth random pictures, as many of each class."""
    generator = np.random.default_rng(0)
    for name in classes:
        (path / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8))
            coarse.resize(size, Image.Resampling.BICUBIC).save(path / name / f"{number:03d}.png")
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRDM_CACHE", str(tmp_path / "cache"))


def test_pictures_without_classes_go_all_the_way(tmp_path, capsys):
    data = pictures(tmp_path / "data", 200)
    options = ["folder", "--data.path", str(data), "--limit", "150"]
    main(["check", *options])
    checked = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert "100 train, 50 val, no classes, 3x16x16" in checked["data"]
    assert re.search(r"ok +time +estimate: about [\d.]+ (seconds|minutes)", checked["time"])

    assert main(["train", *options, "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "label accuracy" not in out and " nan" not in out
    result = read_result(tmp_path / "run" / "result.json")
    assert "label_accuracy" not in result.scores and {"sw_ratio", "precision"} <= set(result.scores)
    run = load_run(tmp_path / "run")
    assert run.spec.width == 0 and "embed_label.weight" not in run.generator.trained()

    assert main(["sample", "run", "--count", "6", "--format", "files", "--out", "drawn"]) == 0
    assert len([*(tmp_path / "drawn").glob("*.png")]) == 6
    assert main(["sample", "run", "--classes", "cat"]) == 1
    assert "classes" in capsys.readouterr().err
    assert main(["report", "run"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "label accuracy" not in page.lower()
    assert torch.isfinite(run.drawn(run.spec.each(3), 0).read(torch.arange(3))).all()


def test_a_limit_limits(tmp_path, capsys):
    """Of 600 pictures 150 are read, encoders are fitted on 100 of them, and nothing is done to the others."""
    data = pictures(tmp_path / "data", 300, classes=("cat", "dog"))
    assert main(["train", "folder", "--data.path", str(data), "--limit", "150", "--evaluation", "none"]) == 0
    out = capsys.readouterr().out
    assert "100 training images, 50 held out" in out and "step 2/2" in out
    assert {int(count) for count in re.findall(r"on (\d+) images", out)} == {100}
    assert (tmp_path / "runs" / "folder-limit-150").is_dir()


def one(path):
    pictures(path, 1)


def shapes(path):
    pictures(path, 60)
    Image.new("RGB", (20, 30)).save(path / "other.png")


def large(path):
    pictures(path, 110, size=(140, 130))


def empty(path):
    pictures(path, 60, classes=("cat", "dog"))
    (path / "eel").mkdir()


def mixed(path):
    pictures(path, 60, classes=("cat", "."))


def float_tiff(path):
    pictures(path, 120)
    Image.fromarray(np.ones((16, 16), np.float32)).save(path / "z.tif")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (one, "has 1 row"),
        (shapes, "expected one size, of at least 4 x 4. Give a size in pixels"),
        (large, "at most 128 pixels a side, and these have 140 x 130. Make them smaller: --data.size 32"),
        (empty, "eel is an empty folder"),
        (mixed, "mixes images inside and outside of class folders"),
        (float_tiff, "z.tif cannot be used: its pixels are floating-point numbers"),
        (lambda path: None, "There is no data"),
        (lambda path: path.mkdir(), "holds no image among its 0 file"),
    ],
    ids=["one image", "many shapes", "too large", "an empty class", "classes and none", "floats", "none", "empty"],
)
def test_what_cannot_be_used_is_one_error_before_anything_is_written(make, said, tmp_path, capsys):
    make(tmp_path / "data")
    assert main(["train", "folder", "--data.path", "data"]) == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("irdm: error: ") and error.count("irdm: error") == 1
    assert "Traceback" not in error and not (tmp_path / "runs").exists()
