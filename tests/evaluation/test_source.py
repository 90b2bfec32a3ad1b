"""Folders of images judged against a reference: numbers that make sense, that reproduce, and that resume."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from metrics.tables import numbers
from PIL import Image
from tiny_reference import SIZE, tiny_battery, write_pictures

from irdm.compare import compare
from irdm.data.sources import open_source
from irdm.evaluation import EvaluationConfig, evaluate_source, read_result
from irdm.files import locked
from irdm.metrics.pickscore import PickScore
from irdm.ops.sliced import unit_directions
from irdm.store import FeatureStore

CONFIG = EvaluationConfig(rows=64, directions=32, rff_features=64, resamples=8)
ENCODERS = dict(tiny_battery().encoders.items())


def judged(source, reference, out, names=None, **options):
    source = source if hasattr(source, "conditions") else open_source(source)
    names = names or reference.names
    about = {"name": reference.name, "train": 160, "val": 160, "size": list(reference.image_shape)}
    settings = {
        "config": CONFIG,
        "image_shape": reference.image_shape,
        "reference": about,
        "missing": [name for name in reference.names if name not in names],
        "pictures": reference.samples(),
    }
    encoders = {name: ENCODERS[name] for name in names}
    return evaluate_source(source, reference.real(names), encoders, out, **settings | options)


@pytest.fixture(scope="module")
def fresh(built, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("fresh") / "out"
    return judged(pictures / "fresh", built, out, command="irdm eval fresh"), out


@pytest.fixture(scope="module")
def blurred(built, pictures, tmp_path_factory):
    return judged(pictures / "blurred", built, tmp_path_factory.mktemp("blurred") / "out")


def test_fresh_images_score_about_one_and_degraded_ones_more(fresh, blurred):
    result, out = fresh
    for name in ("sw_ratio", "mmd_ratio"):
        score = result.scores[name].mean
        assert 0.5 < score.value < 1.7 and 0.5 < score.control < 1.7
        assert blurred.scores[name].mean.value > 1.3 * score.value
    coverage = result.scores["coverage"].mean
    assert blurred.scores["coverage"].mean.value < 0.9 * coverage.value
    assert coverage.value == pytest.approx(coverage.control, abs=0.1)
    assert 0.4 < result.scores["closeness"].mean.value < 0.6
    three = {"conv", "pool", "mixed"}
    apart = {"near_copies": three | {"thumbnails"}, "duplicates": set()}
    assert all(set(score.encoders) == apart.get(name, three) for name, score in result.scores.items())
    ratio = result.scores["sw_ratio"]
    assert ratio.label == "SW_r3" and ratio.notes["law"] == "stratified" and ratio.notes["rows"] == 64
    assert ratio.held_in.value == pytest.approx((ratio.encoders["conv"].value + ratio.encoders["pool"].value) / 2)
    assert ratio.held_out == ratio.encoders["mixed"].model_copy(update={"notes": {}})
    assert read_result(out) == result and result.command == "irdm eval fresh" and result.seconds["total"] > 0
    with np.load(out / "samples.npz") as samples:
        assert samples["generated"].shape[1:] == samples["real"].shape[1:] == (3, SIZE, SIZE)
        assert samples["generated_captions"].tolist() == ["a"] * 10 + ["b"] * 10
        assert len(samples["real_captions"]) == len(samples["real"])


def test_the_sliced_ratio_is_that_of_pot(built, pictures, fresh):
    """The numerator is POT's distance of the judged draws to the draw of train, along the same directions."""
    result, out = fresh
    store, real = FeatureStore(out / "features"), built.real()
    order = store.index.argsort()  # images are judged in the order of the source
    generated = {name: store[name][order] for name in ENCODERS}
    from irdm.metrics import Table
    from irdm.metrics.base import Pools

    pools = Pools.of(Table(generated, store.conditions[order]), real)
    target, draws = pools.train.sample(64, "target", 0), pools.generated.draws(64, 2, "generated", 0)
    for name, row in result.scores["sw_ratio"].encoders.items():
        rows, train = generated[name], real.train.features[name][target].double()
        directions = unit_directions(train.shape[1], 32, 0, torch.float64).numpy()
        costs = [
            ot.sliced_wasserstein_distance(rows[draw].double().numpy(), train.numpy(), projections=directions, p=2)
            for draw in draws
        ]
        assert row.value * row.notes["real_distance"] == pytest.approx(np.mean(costs), rel=1e-4)


def test_the_micro_batch_changes_nothing_but_rounding(built, pictures, fresh, tmp_path):
    other = judged(pictures / "fresh", built, tmp_path / "out", config=CONFIG.model_copy(update={"micro_batch": 7}))
    assert other.protocol == fresh[0].protocol
    values = [{k: v for k, v in numbers(result.scores).items() if k.endswith(".value")} for result in (other, fresh[0])]
    assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-6)


def test_the_same_call_goes_on_where_it_was(built, pictures, fresh):
    """The features are there, so no image is decoded again."""
    result, out = fresh
    before = {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.safetensors")}
    again = judged(pictures / "fresh", built, out)
    assert again.scores == result.scores
    assert before == {path: path.stat().st_mtime_ns for path in (out / "features").rglob("*.safetensors")}


def test_fewer_encoders_make_a_partial_score(built, pictures, fresh, tmp_path):
    result = judged(pictures / "fresh", built, tmp_path / "out", names=["conv"])
    assert result.scores["sw_ratio"].label == "SW_r1 (partial)" and result.missing == ("pool", "mixed")
    assert any("1 of the reference's 3 encoders" in text for text in result.warnings)
    alone, whole = (found.scores["sw_ratio"].encoders["conv"].value for found in (result, fresh[0]))
    assert alone == pytest.approx(whole, rel=1e-6), "an encoder's own score does not depend on its company"
    with pytest.raises(ValueError, match="unlike protocols(.|\n)*other encoders, real.encoders"):
        compare(fresh[0], result)


def test_a_folder_without_classes_is_drawn_at_random(built, pictures, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (pictures / "fresh").rglob("*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    result = judged(flat, built, tmp_path / "out")
    assert result.protocol["law"] == result.scores["mmd_ratio"].notes["law"] == "random"
    assert "label_accuracy" not in result.scores and not any("regard to classes" in text for text in result.warnings)


def test_other_sizes_are_cropped_as_the_reference_was_and_said(built, tmp_path):
    source = write_pictures(tmp_path / "wide", 60, 5, side=24)
    said = []
    result = judged(source, built, tmp_path / "out", progress=said.append)
    note = "Images are 24 x 24: each is centre-cropped and resized to 8 x 8."
    assert note in said and note in result.warnings


def test_few_images_are_said_and_fewer_are_an_error(built, tmp_path):
    result = judged(write_pictures(tmp_path / "fifty", 50, 9), built, tmp_path / "out")
    assert any("50 images: the ratios compare that many" in text for text in result.warnings)
    with pytest.raises(ValueError, match=r"holds 49 image\(s\); an evaluation needs at least 50"):
        judged(write_pictures(tmp_path / "few", 49, 9), built, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_occupied_directory_is_left_alone(built, pictures, fresh, tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(ValueError, match="exists and is no evaluation"):
        judged(pictures / "fresh", built, tmp_path)
    with pytest.raises(ValueError, match="something else"):
        judged(pictures / "blurred", built, fresh[1])
    with locked(fresh[1], "evaluated"), pytest.raises(ValueError, match="is being evaluated by process"):
        judged(pictures / "fresh", built, fresh[1])  # flock tells two handles of one process apart


def test_an_image_that_cannot_be_used_is_named(built, tmp_path):
    source = write_pictures(tmp_path / "images", 60, 6)
    (source / "a" / "0000.png").write_bytes((source / "a" / "0002.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"a/0000.png"):
        judged(source, built, tmp_path / "out")


class Brightness(PickScore):
    """Stands for PickScore: how bright a picture is, plus the length of its prompt."""

    def __init__(self):
        pass

    def scores(self, images, prompts, micro_batch=64):
        values = [np.asarray(image).mean() + len(text) for image, text in zip(images, prompts, strict=True)]
        return torch.tensor(values, dtype=torch.float64)


def test_prompts_add_a_pickscore_of_the_images_themselves(built, tmp_path):
    source = open_source(write_pictures(tmp_path / "images", 60, 7, side=12))
    prompts = ["x" * (i % 5) for i in range(60)]
    result = judged(source, built, tmp_path / "out", prompts=prompts, scorers=[Brightness()])
    files = [tmp_path / "images" / name for name in source.names]
    expected = np.mean([np.asarray(Image.open(file)).mean() for file in files]) + 2
    assert result.scores["pickscore"].mean.value == pytest.approx(expected)
    assert result.protocol["prompts"] != judged(source, built, tmp_path / "plain").protocol["prompts"] is None
    with pytest.raises(ValueError, match="59 prompts for 60 images"):
        judged(source, built, tmp_path / "more", prompts=prompts[1:], scorers=[Brightness()])
