"""Results on disk, and the pictures beside them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from metrics.tables import gaussian, real_side, table
from tiny_reference import tiny_battery

from irdm.conditions import Classes, Unconditional
from irdm.data import DigitsConfig
from irdm.data.base import TensorSplit
from irdm.evaluation import evaluate_tables, gallery, read_result, write_result, write_samples
from irdm.files import write_manifest
from irdm.metrics import EvaluationConfig

CONFIG = EvaluationConfig(directions=16, rff_features=32, resamples=4)
DATA = DigitsConfig().build()


@pytest.fixture(scope="module")
def result():
    return evaluate_tables(
        table(gaussian(60, 2)),
        real_side(gaussian(100, 0), gaussian(100, 1), ["b"]),
        CONFIG,
        source={"path": "generated", "images": 60},
        reference={"name": "real"},
        step=7,
        seeds={"evaluation": 0},
    )


def test_a_result_comes_back_as_it_was(result, tmp_path):
    write_result(tmp_path / "result.json", result)
    assert read_result(tmp_path) == read_result(tmp_path / "result.json") == result
    assert json.loads((tmp_path / "result.json").read_text())["kind"] == "evaluation"
    assert {"images": 60, "law": "random"}.items() <= result.protocol.items()
    assert result.protocol["settings"] == {"directions": 16, "rff_features": 32, "resamples": 4}
    assert result.versions["irdm"] and result.step == 7


def test_damage_is_one_error_that_names_the_file(result, tmp_path):
    file = tmp_path / "result.json"
    with pytest.raises(ValueError, match=f"There is no {file}"):
        read_result(tmp_path)
    write_result(file, result)
    whole = file.read_text()
    body = json.loads(whole)
    body.pop("self")
    for content in (b"", b"[]", b"\xff\xfe", whole[:500].encode(), whole.replace("0.", "1.", 1).encode(), b"[" * 99999):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="result.json"):
            read_result(file)
    for damage in ({"scores": []}, {"scores": {"sw_ratio": 3}}, {"kind": "run"}, {"warnings": 1}, {"more": 1}):
        write_manifest(file, body | damage)
        with pytest.raises(
            ValueError, match=r"result.json is no result of this irdm .*Repeat the `irdm eval`"
        ) as error:
            read_result(file)
        assert "http" not in str(error.value)
    body["scores"]["sw_ratio"]["mean"]["ci95"] = [1]
    write_manifest(file, body)
    with pytest.raises(ValueError, match=r"scores.sw_ratio.mean.ci95"):
        read_result(file)


def test_the_gallery_shows_ten_of_each_class_beside_real_ones_and_their_neighbours(tmp_path):
    shown = gallery(DATA.val, DATA.val, DATA.train)
    assert shown["generated"].shape == shown["real"].shape == shown["neighbours"].shape == (100, 1, 8, 8)
    assert shown["generated"].dtype == np.uint8 and shown["neighbour_distance"].dtype == np.float32
    assert shown["generated_captions"].tolist() == [str(digit) for digit in range(10) for _ in range(10)]
    gap = (shown["generated"] / 255.0 - shown["neighbours"] / 255.0).reshape(100, -1)
    np.testing.assert_allclose(np.linalg.norm(gap, axis=1), shown["neighbour_distance"], atol=0.02)
    assert (gallery(DATA.train, DATA.val, DATA.train)["neighbour_distance"] == 0).all()
    write_samples(tmp_path / "samples.npz", shown)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert {name: file[name].tolist() for name in file.files} == {k: v.tolist() for k, v in shown.items()}


def test_the_gallery_of_many_classes_large_images_or_none(tmp_path):
    many = TensorSplit(torch.rand(3000, 1, 4, 4), Classes(torch.arange(3000) % 100, [f"class {i}" for i in range(100)]))
    shown = gallery(many, (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), ["a", "bb", ""]))
    assert len(set(shown["generated_captions"])) == 20 and len(shown["generated"]) == 200
    assert {"class 0", "class 99"} <= set(shown["generated_captions"])
    assert shown["real_captions"].tolist() == ["a", "bb", ""] and "neighbours" not in shown
    large = TensorSplit(torch.rand(60, 1, 70, 70), Classes(torch.arange(60) % 15, [str(i) for i in range(15)]))
    assert gallery(large, large)["generated"].shape == (48, 1, 70, 70), "12 classes of 4, all there are"
    plain = TensorSplit(torch.rand(300, 1, 4, 4), Unconditional(300))
    shown = gallery(plain, plain, per_class=6)
    assert len(shown["generated"]) == 36 and set(shown["generated_captions"]) == {""}
    assert not np.array_equal(shown["generated"], gallery(plain, plain, per_class=6, seed=1)["generated"])


def test_names_that_are_no_unicode_are_written_as_they_are_printed(tmp_path):
    plain = TensorSplit(torch.rand(9, 1, 4, 4), Unconditional(9))
    write_samples(tmp_path / "samples.npz", gallery(plain, (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), ["caf\udce9"])))
    with np.load(tmp_path / "samples.npz") as file:
        assert file["real_captions"].tolist() == ["caf\\udce9"]


def test_the_tiny_battery_is_the_same_every_time():
    """The premise of comparing memory with disk."""
    one, two = tiny_battery(), tiny_battery()
    images = torch.rand(3, 3, 8, 8)
    assert all(torch.equal(one[name](images), two[name](images)) for name in one.encoders)
