"""Images judged against a reference: numbers that make sense, that reproduce, and that say what they are of."""

import json

import numpy as np
import ot
import pytest
import torch
from browser import needs_browser, opened
from PIL import Image
from tiny_reference import CONFIG, JUDGING, SIZE, build_tiny, tiny_panel, write_pictures

from irdm.compare import compare
from irdm.data.limited import Limited
from irdm.data.sources import open_source
from irdm.judging import Judge, evaluate_source
from irdm.metrics.pickscore import PickScore
from irdm.report import write_evaluation_report
from irdm.store import FeatureStore

ENCODERS = dict(tiny_panel().battery.encoders.items())
METRICS = (
    "sw_ratio",
    "mmd_ratio",
    "frechet_distance",
    "precision",
    "recall",
    "density",
    "coverage",
    "closeness",
    "authenticity",
    "copies",
)


def judged(source, reference, out, **options):
    source = source if hasattr(source, "fingerprint") else open_source(source)
    return evaluate_source(source, Judge(reference.path), out, **{"encoders": ENCODERS} | options)


@pytest.fixture(scope="module")
def fresh(built, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("fresh") / "out"
    return judged(pictures / "fresh", built, out, command="irdm eval fresh"), out


@pytest.fixture(scope="module")
def blurred(built, pictures, tmp_path_factory):
    return judged(pictures / "blurred", built, tmp_path_factory.mktemp("blurred") / "out")


def test_fresh_images_score_about_one_and_degraded_ones_more(fresh, blurred):
    result, _ = fresh
    for kind in ("sw_ratio", "mmd_ratio"):
        low, high = result[kind]["ci95"]
        assert 0.6 < result[kind]["mean"] < 1.6 and low < result[kind]["real_control"] < high
        assert blurred[kind]["mean"] > 1.3 * result[kind]["mean"]
    assert blurred["coverage"]["mean"] < 0.9 * result["coverage"]["mean"]
    assert result["coverage"]["mean"] == pytest.approx(result["coverage"]["real_control"], abs=0.1)
    assert 0.4 < result["closeness"]["mean"] < 0.6
    for name in METRICS:
        assert set(result[name]["per_encoder"]) == {"conv", "pool", "mixed"} and not result[name]["missing"]
        assert result[name]["per_encoder"]["mixed"]["held_out"]
    in_and_out = [result["sw_ratio"]["per_encoder"][name]["value"] for name in ("conv", "pool", "mixed")]
    assert result["sw_ratio"]["held_in"] == pytest.approx(np.mean(in_and_out[:2]))
    assert result["sw_ratio"]["held_out"] == pytest.approx(in_and_out[2])


def test_copies_of_train_are_seen(built, pictures, tmp_path):
    result = judged(Limited(open_source(pictures / "train"), 100), built, tmp_path / "out")
    assert result["closeness"]["mean"] > 0.95 and result["authenticity"]["mean"] < 0.05
    assert result["copies"]["mean"] > 0.99 and result["copies"]["real_control"] < 0.05


@pytest.mark.parametrize(("margin", "said"), [(0.0, True), (1e9, False)])
def test_a_control_far_from_one_is_pointed_out(built, pictures, tmp_path, monkeypatch, margin, said):
    monkeypatch.setattr("irdm.judging.evaluate.CONTROL_MARGIN", margin)
    result = judged(pictures / "fresh", built, tmp_path / "out")
    text = f"Fresh real images themselves score {result['sw_ratio']['real_control']:.2f} here, not 1.00: with 160 val"
    assert said == any(text in warning for warning in result["warnings"])


def test_what_memorisation_did_not_look_at_is_said(pictures, fresh, tmp_path):
    few = CONFIG.model_copy(update={"judging": JUDGING.model_copy(update={"table_rows": 64})})
    reference = build_tiny(pictures, tmp_path / "reference", few)
    said = "compare with 64 random train images of 160: a copy of one of the others is not seen"
    result = judged(pictures / "fresh", reference, tmp_path / "out")
    assert any(said in text for text in result["warnings"])
    assert not any("is not seen" in text for text in fresh[0]["warnings"])


def test_the_sliced_ratio_is_that_of_pot(built, pictures, tmp_path):
    """The numerator is POT's distance of a draw to the bank's draw of train, along the same directions."""
    out = tmp_path / "out"
    result = judged(Limited(open_source(pictures / "fresh"), 64), built, out)
    generated, bank = FeatureStore(out / "features"), built.banks["sw_ratio"]
    assert len(generated) == bank.protocol.rows == 64
    for name, row in result["sw_ratio"]["per_encoder"].items():
        target = bank.targets[name]
        assert len(target.sorted) == 64, "a draw of train"
        own = [rows.double().numpy() for rows in (generated[name][:] - target.center, target.directions)]
        projected = target.sorted.double().numpy()
        costs = [ot.wasserstein_1d((own[0] @ own[1][:, k]), projected[:, k], p=2) for k in range(projected.shape[1])]
        assert row["value"] * row["real_distance"] == pytest.approx(np.sqrt(np.mean(costs)), rel=1e-4)


def test_the_micro_batch_changes_nothing_but_rounding(built, pictures, fresh, tmp_path):
    result, _ = fresh
    other = judged(pictures / "fresh", built, tmp_path / "out", micro_batch=7)
    assert other["protocol"] == result["protocol"]
    for name in METRICS:
        for encoder, row in result[name]["per_encoder"].items():
            assert other[name]["per_encoder"][encoder]["value"] == pytest.approx(row["value"], rel=1e-4), (
                name,
                encoder,
            )


def test_fewer_encoders_make_a_partial_score(built, pictures, fresh, tmp_path):
    result = judged(pictures / "fresh", built, tmp_path / "out", encoders={"conv": ENCODERS["conv"]})
    assert result["sw_ratio"]["name"] == "SW_r1 (partial)" and result["sw_ratio"]["missing"] == ["pool", "mixed"]
    assert result["panel"]["partial"] and any("without pool, mixed" in text for text in result["warnings"])
    alone, whole = (r["sw_ratio"]["per_encoder"]["conv"]["value"] for r in (result, fresh[0]))
    assert alone == pytest.approx(whole, rel=1e-6), "an encoder's own score does not depend on its company"
    with pytest.raises(ValueError, match="unlike protocols"):
        compare(fresh[0], result)


def test_encoders_of_another_panel_are_refused(built, pictures, tmp_path):
    with pytest.raises(ValueError, match="has no encoder inception"):
        judged(pictures / "fresh", built, tmp_path / "out", encoders={"inception": ENCODERS["conv"]})
    with pytest.raises(ValueError, match="not those that made the reference"):
        judged(pictures / "fresh", built, tmp_path / "out", encoders=dict(tiny_panel(9).battery.encoders.items()))
    with pytest.raises(ValueError, match="encoders of your own; pass them"):
        judged(pictures / "fresh", built, tmp_path / "out", encoders=None)


def test_other_sizes_are_cropped_as_the_reference_was_and_said(built, tmp_path):
    source = write_pictures(tmp_path / "wide", 60, 5, side=24)
    said = []
    result = judged(source, built, tmp_path / "out", progress=said.append)
    note = "Images are 24 x 24: each is centre-cropped and resized to 8 x 8, as those of the reference were."
    assert note in said and note in result["warnings"]


def test_few_images_widen_the_interval_and_fewer_are_an_error(built, pictures, fresh, tmp_path):
    source = open_source(pictures / "fresh")
    few = [judged(Limited(source, 50, seed), built, tmp_path / f"out-{seed}") for seed in range(3)]
    assert any("50 images: the ratios compare 32 at a time" in text for text in few[0]["warnings"])
    assert not any("at a time" in text for text in fresh[0]["warnings"])

    def width(result):  # over metrics and encoders, since one is itself known to a quarter
        parts = [part["ci95"] for name in METRICS[3:] for part in result[name]["per_encoder"].values()]
        return sum(high - low for low, high in parts)

    assert sum(map(width, few)) / 3 > 1.2 * width(fresh[0]), "1.6 = sqrt(128 / 50) is expected"
    with pytest.raises(ValueError, match=r"holds 49 image\(s\); an evaluation needs at least 50"):
        judged(Limited(source, 49), built, tmp_path / "few")
    assert not (tmp_path / "few").exists()


def test_a_comparison_finds_the_better_one(fresh, blurred):
    found = compare(fresh[0], blurred)["metrics"]
    assert found["sw_ratio"]["mean"]["better"] == "a" and found["coverage"]["mean"]["difference"] < 0
    assert found["frechet_distance"]["mean"] is None and found["frechet_distance"]["per_encoder"]["conv"]["ci95"]


def test_an_occupied_directory_is_left_alone(built, pictures, fresh, tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(ValueError, match="exists and is no evaluation"):
        judged(pictures / "fresh", built, tmp_path)
    with pytest.raises(ValueError, match="a store of something else"):
        judged(pictures / "blurred", built, fresh[1])


def test_an_image_that_cannot_be_used_is_named(built, pictures, tmp_path):
    source = write_pictures(tmp_path / "images", 60, 6)
    (source / "a" / "0000.png").write_bytes((source / "a" / "0002.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"a/0000.png cannot be used"):
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
    result = judged(source, built, tmp_path / "out", prompts=prompts, scorer=Brightness())
    files = [tmp_path / "images" / name for name in source.names]
    expected = np.mean([np.asarray(Image.open(file)).mean() for file in files]) + 2
    assert result["pickscore"]["value"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="59 prompts for 60 images"):
        judged(source, built, tmp_path / "more", prompts=prompts[1:], scorer=Brightness())


def test_the_report_shows_the_numbers_and_the_images(fresh, blurred):
    result, out = fresh
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    with np.load(out / "samples.npz") as samples:
        assert samples["generated"].shape == samples["real"].shape == (60, 3, SIZE, SIZE)
    page = write_evaluation_report(out).read_text()
    for figure in ("ruler", "bars", "sheet-judged", "sheet-real"):
        assert f'data-figure="{figure}"' in page
    assert page.count("data:image/png") == 120
    for text in ("real = 1.00", "SW_r3", "FD-conv", "coverage", "irdm eval fresh", result["source"]["fingerprint"]):
        assert text in page
    assert f"{result['sw_ratio']['mean']:.2f}" in page and "http" not in page.replace("http-equiv", "")
    assert len(page) < 5_000_000


@needs_browser
def test_the_report_in_a_browser(fresh, tmp_path):
    assert opened(write_evaluation_report(fresh[1]), tmp_path) == {"ruler", "bars", "sheet-judged", "sheet-real"}


def test_a_page_needs_an_evaluation(tmp_path):
    with pytest.raises(ValueError, match="holds no whole evaluation"):
        write_evaluation_report(tmp_path)
