"""Results on disk, and the pictures beside them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from metrics.tables import gaussian, real_side, table
from tiny_reference import tiny_battery

from irdm.conditions import Classes, Prompts, PromptSpec, Unconditional
from irdm.data import DigitsConfig
from irdm.data.base import TensorSplit
from irdm.evaluation import closest_pairs, evaluate_tables, gallery, read_result, write_result, write_samples
from irdm.evaluation.pictures import SIDES
from irdm.files import write_manifest
from irdm.metrics import EvaluationConfig, Table
from irdm.metrics.memorisation import memorisation

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


def test_the_gallery_shows_ten_of_each_class_beside_real_ones(tmp_path):
    shown = gallery(DATA.val, DATA.val)
    assert shown["generated"].shape == shown["real"].shape == (100, 1, 8, 8)
    assert shown["generated"].dtype == np.uint8
    assert shown["generated_captions"].tolist() == [str(digit) for digit in range(10) for _ in range(10)]
    write_samples(tmp_path / "samples.npz", shown)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert {name: file[name].tolist() for name in file.files} == {k: v.tolist() for k, v in shown.items()}


def test_the_gallery_of_captions_shows_real_images_of_the_same_texts():
    spec = PromptSpec(embedder="none", width=1, sources=("a", "b"))

    def split(texts):
        images = torch.arange(len(texts))[:, None, None, None].expand(-1, 3, 4, 4) / 255
        return TensorSplit(images, Prompts(texts, None, torch.arange(len(texts)) % 2, spec))

    judged, real = split(["x", "y", "z", "x"]), split(["q", "x", "z", "x", "r"])
    shown = gallery(judged, real)
    pairs = dict(zip(shown["generated"][:, 0, 0, 0].tolist(), shown["real"][:, 0, 0, 0].tolist(), strict=True))
    assert pairs[2] == 2 and {pairs[0], pairs[3]} == {1, 3} and pairs[1] in (0, 4)
    assert shown["real_captions"].tolist().count("x") == 2


def test_the_gallery_of_many_classes_large_images_or_none(tmp_path):
    many = TensorSplit(torch.rand(3000, 1, 4, 4), Classes(torch.arange(3000) % 100, [f"class {i}" for i in range(100)]))
    shown = gallery(many, None)
    assert len(set(shown["generated_captions"])) == 20 and len(shown["generated"]) == 200
    assert {"class 0", "class 99"} <= set(shown["generated_captions"])
    assert shown["real"].shape == (0, 1, 4, 4) and shown["real_captions"].tolist() == []
    large = TensorSplit(torch.rand(60, 1, 70, 70), Classes(torch.arange(60) % 15, [str(i) for i in range(15)]))
    assert gallery(large, large)["generated"].shape == (48, 1, 70, 70), "12 classes of 4, all there are"
    plain = TensorSplit(torch.rand(300, 1, 4, 4), Unconditional(300))
    shown = gallery(plain, plain, per_class=6)
    assert len(shown["generated"]) == 36 and set(shown["generated_captions"]) == {""}
    assert not np.array_equal(shown["generated"], gallery(plain, plain, per_class=6, seed=1)["generated"])


def test_names_that_are_no_unicode_are_written_as_they_are_printed(tmp_path):
    odd = TensorSplit(torch.rand(9, 1, 4, 4), Classes(torch.arange(9) % 2, ["caf\udce9", "b"]))
    write_samples(tmp_path / "samples.npz", gallery(odd, odd, per_class=1))
    with np.load(tmp_path / "samples.npz") as file:
        assert file["real_captions"].tolist() == ["caf\\udce9", "b"]


def test_the_closest_pairs_are_those_that_the_score_names():
    """Train images that were darkened and mirrored lie beside what they were; fresh ones beside their neighbours."""
    small = [torch.unique((split.images * 255).byte(), dim=0) for split in (DATA.train, DATA.val)]
    order = torch.Generator().manual_seed(0)
    train, val = (part[torch.randperm(len(part), generator=order)] for part in small)
    copies = (train[:20] * 0.95).round().byte().flip(3)
    sides = [
        Table({"a": torch.randn(len(part), 3, generator=order)}, Unconditional(len(part)), thumbnails=part)
        for part in (torch.cat([val[:200], copies]), train, val[200:])
    ]
    real = real_side(*sides[1:])
    scores = memorisation(sides[0], real, CONFIG)
    shown = closest_pairs(scores, sides[0], real)
    assert scores["near_copies"].mean.notes["encoder"] == "thumbnails"
    assert all(shown[side].shape == (8, 1, 8, 8) and shown[side].dtype == np.uint8 for side in SIDES)
    gap = np.abs(shown["judged"][..., ::-1] - shown["copied"] * 0.95).reshape(8, -1).max(1)
    assert (gap <= 0.51).sum() >= 7 and (shown["judged_ratio"] < 0.2).all() and shown["judged_share"].max() < 0.02
    assert (shown["fresh_ratio"] > 0.4).all() and closest_pairs({}, sides[0], real) == {}


def test_judged_images_that_are_real_ones_are_said_or_refused():
    train, val = (
        Table({"a": torch.randn(n, 3)}, Unconditional(n), thumbnails=torch.randint(0, 256, (n, 1, 8, 8)).byte())
        for n in (90, 80)
    )
    real, about = real_side(train, val), {"source": {"path": "x"}, "reference": {"name": "y"}}

    def judged(parts):
        pictures = torch.cat([table.thumbnails[rows] for table, rows in parts])
        features = torch.cat([table.features["a"][rows] for table, rows in parts])
        return Table({"a": features}, Unconditional(len(pictures)), thumbnails=pictures)

    fresh = Table({"a": torch.randn(60, 3)}, Unconditional(60), thumbnails=torch.zeros(60, 1, 8, 8).byte())
    every = slice(None)
    some = evaluate_tables(judged([(fresh, every), (val, slice(9)), (train, slice(4))]), real, CONFIG, **about)
    assert (some.source["in_val"], some.source["in_train"]) == (9, 4)
    assert some.verdict.sentence.startswith("9 of the 73 judged images are held-out real images themselves")
    assert "4 of the 73 judged images are train images, to the pixel." in some.warnings
    none = evaluate_tables(fresh, real, CONFIG, **about)
    assert (none.source["in_val"], none.source["in_train"]) == (0, 0) and "judged images are" not in str(none.warnings)
    with pytest.raises(ValueError, match="All 60 judged images are held-out real images"):
        evaluate_tables(judged([(val, slice(60))]), real, CONFIG, **about)


def test_the_tiny_battery_is_the_same_every_time():
    """The premise of comparing memory with disk."""
    one, two = tiny_battery(), tiny_battery()
    images = torch.rand(3, 3, 8, 8)
    assert all(torch.equal(one[name](images), two[name](images)) for name in one.encoders)
