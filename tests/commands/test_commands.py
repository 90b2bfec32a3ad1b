"""`irdm reference`, `eval`, `compare`, `sample`, `report` and `encoders`, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_pickscore import write_pickscore
from tiny_reference import write_pictures

from irdm.cli import main
from irdm.commands.eval import read_prompts
from irdm.commands.scores import comparison_table, score_table
from irdm.data.sources import open_source
from irdm.evaluation import Result, read_result, verdict_of
from irdm.metrics.score import Estimate, Score
from irdm.reference import open_reference

RUN = ["--steps", "2", "--rollout", "64", "--battery.steps", "2", "--log-every", "1", "--checkpoint-every", "2"]
RUN += ["--battery.held-in", "content,pixels", "--battery.held-out", "pca", "--device", "cpu"]
JUDGED = ["--evaluation.directions", "16", "--evaluation.rff-features", "32", "--evaluation.resamples", "4"]


def said(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """Run a command that must fail with `code`, and what it says."""
    assert main([str(word) for word in words]) == code
    error = capsys.readouterr().err
    assert "irdm: error: " in error and "Traceback" not in error
    return error


def done(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def home(pictures, tmp_path_factory):
    """A folder with a reference `mine`, built by the command in a process of its own, from any directory."""
    home = tmp_path_factory.mktemp("home")
    options = ["--battery-steps", "2", "--rollout", "64", "--limit", "100", "--device", "cpu"]
    sources = ["--train", pictures / "train", "--val", pictures / "val"]
    found = subprocess.run(
        [sys.executable, "-m", "irdm.cli", "reference", "build", "mine", *sources, *options],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr
    assert "irdm eval SOURCE --against references/mine" in found.stdout
    return home


@pytest.fixture
def there(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope="module")
def run(home):
    """A short run on the digits."""
    done("train", "digits-smoke", *RUN, *JUDGED, "--out", home / "run")
    return home / "run"


@pytest.fixture(scope="module")
def judged(home, pictures):
    """The directories of a fresh and a blurred evaluation."""
    folders = {name: home / f"judged-{name}" for name in ("fresh", "blurred")}
    for name, folder in folders.items():
        done("eval", pictures / name, "--against", home / "references" / "mine", "--out", folder, *JUDGED)
    return folders


def test_a_build_and_its_description(there, capsys):
    done("reference", "show", "mine")
    text = capsys.readouterr().out
    reference = open_reference(there / "references" / "mine")
    assert reference.plan["train"]["count"] == reference.plan["val"]["count"] == 100
    assert reference.image_shape == (3, 8, 8), "the size that the pictures have"
    assert len(reference.names) == 9 and reference.plan["battery"]["steps"] == 2
    assert reference.address in text and "reference build mine" in text


def test_the_reference_of_a_preset_is_the_one_that_its_run_trains_against(there, capsys):
    done("reference", "build", "digits", "--preset", "digits-smoke", "--data.limit", "400", "--battery.steps", "2")
    assert "irdm train digits-smoke --reference" in capsys.readouterr().out
    fields = ["--data.limit", "400", "--reference", "references/digits", "--out", "against", *JUDGED, "--steps", "1"]
    done("train", "digits-smoke", *fields, "--battery.steps", "2")
    text = capsys.readouterr().out
    assert "fitted the encoder" not in text and "real rows fitted" not in text, "nothing is fitted a second time"
    assert read_result(there / "against").reference["name"] == "digits"


def test_a_reference_may_be_for_judging_alone(there, pictures, capsys):
    sources = ["--train", pictures / "train", "--val", pictures / "val", "--battery-steps", "2"]
    done("reference", "build", "light", *sources, "--judge-only", "--size", "8", "--battery.held-in", "pixels")
    text = capsys.readouterr().out
    assert "irdm train" not in text and "floor" not in text
    done("eval", pictures / "fresh", "--against", "light", "--out", "light-eval", *JUDGED)


def test_a_folder_of_real_images_is_compared_with_and_kept_in_the_cache(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRDM_CACHE", str(tmp_path / "cache"))
    real, few = pictures / "train", ["--panel", "pixels,pca"]
    done("eval", pictures / "fresh", "--against", real, *few, "--out", "fresh", *JUDGED)
    text = capsys.readouterr().out
    assert f"{real}: 80 images are train and 80 others are held out as val" in text
    assert text.count("128 images are judged, and 80 are held out") == 2, (
        "before anything is fitted, and beside the scores"
    )
    assert f"irdm reference build NAME --train {real} --judge-only" in text and "distance and its floor" not in text
    done("eval", pictures / "blurred", "--against", real, *few, "--out", "blurred", *JUDGED)
    text = capsys.readouterr().out
    assert "is there already" in text and "what evaluation compares with" not in text, "no second build"
    fresh, blurred = (read_result(tmp_path / name) for name in ("fresh", "blurred"))
    assert fresh.reference == {"name": "train", "train": 80, "val": 80, "size": [3, 8, 8]}
    assert fresh.protocol == blurred.protocol and not fresh.missing
    assert blurred.scores["sw_ratio"].mean.value > fresh.scores["sw_ratio"].mean.value
    done("reference", "build", "kept", "--train", real, "--judge-only", *few)
    assert "80 others are held out as val" in capsys.readouterr().out
    (cached,) = (tmp_path / "cache" / "references").iterdir()
    assert open_reference(cached).address == open_reference(tmp_path / "references" / "kept").address
    assert "--size is for a folder" in said(
        capsys, 2, "eval", pictures / "fresh", "--against", "kept", "--size", "8", *JUDGED
    )


def test_bad_images_are_refused_before_anything_is_fitted(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRDM_CACHE", str(tmp_path / "cache"))
    few = write_pictures(tmp_path / "few", 48, 0)
    real = write_pictures(tmp_path / "real", 120, 1)
    for words, message in (
        (["eval", few, "--against", real], "few holds 48 image(s); an evaluation needs at least 50"),
        (["eval", real, "--against", few], "few has 24 train image(s); at least 50"),
        (["eval", real, "--against", "nowhere"], "There is no nowhere"),
        (["reference", "build", "x", "--train", real, "--val", real], "120 of the 120"),
    ):
        assert message in said(capsys, 1, *words)
        assert "fitted" not in capsys.readouterr().out
    assert "is compared with itself" in said(capsys, 2, "eval", real, "--against", real)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "references").exists()


def test_evaluation_writes_numbers_and_a_page(judged):
    results = {name: read_result(out) for name, out in judged.items()}
    means = {name: result.scores["sw_ratio"].mean for name, result in results.items()}
    assert means["blurred"].value > means["fresh"].value
    for name, out in judged.items():
        assert (out / "report.html").stat().st_size > 20_000
        assert f"--out {out}" in results[name].command
        assert results[name].protocol["settings"]["directions"] == 16, "what was typed"


def test_compare_prints_and_writes_the_difference(judged, tmp_path, capsys):
    done("compare", judged["fresh"], judged["blurred"] / "result.json", "--out", tmp_path / "difference.json")
    text = capsys.readouterr().out
    part = json.loads((tmp_path / "difference.json").read_text())["metrics"]["sw_ratio"]["mean"]
    line = next(line for line in text.splitlines() if line.startswith("SW_r9 "))
    assert [float(word) for word in line.split()[1:4]] == pytest.approx(
        [part[key] for key in ("a", "b", "difference")], abs=0.006
    )
    assert "A is better" in line


def test_compare_refuses_what_does_not_compare(there, judged, pictures, tmp_path, capsys):
    part = ["--panel", "pixels,pca", "--out", tmp_path / "part", *JUDGED]
    done("eval", pictures / "fresh", "--against", "mine", *part)
    assert "Partial: 2 of the reference's 9 encoders" in capsys.readouterr().out
    assert "unlike protocols" in said(capsys, 1, "compare", judged["fresh"], tmp_path / "part")
    assert f"There is no {tmp_path / 'result.json'}" in said(capsys, 1, "compare", judged["fresh"], tmp_path)
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "result.json").write_text(text)
        assert str(tmp_path / "result.json") in said(capsys, 1, "compare", judged["fresh"], tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "fresh", "--against", "nowhere"], "There is no nowhere. Images are compared with a folder"),
        (["eval", "fresh", "--against", "mine", "--panel", "dinov2"], "has no encoder dinov2"),
        (["eval", "no-such", "--against", "mine"], "There is no no-such; give a run directory, a folder"),
        (["reference", "build", "x", "--train", "no-such", "--val", "no-such"], "There is no no-such"),
        (["reference", "show", "nowhere"], "nowhere is no reference"),
        (["sample", "run", "--classes", "11"], "There is no class 11; choose from 0, 1"),
        (["sample", "run", "--count", "100000000000000"], "out of memory"),
    ],
)
def test_mistakes_get_one_line(there, run, pictures, words, message, capsys):
    words = [str(pictures / "fresh") if word == "fresh" else word for word in words]
    error = said(capsys, 1, *words)
    assert message in error


def test_a_folder_is_judged_as_a_whole_and_needs_something_to_compare_with(pictures, capsys):
    assert "--count is for a run" in said(capsys, 2, "eval", pictures / "fresh", "--against", "x", "--count", "60")
    assert "say what its images are compared with" in said(capsys, 2, "eval", pictures / "fresh")


def test_a_run_is_judged_again_on_its_own_data_and_keeps_what_training_said(run, capsys):
    first = read_result(run)
    done("eval", run, "--evaluation.directions", "8", "--seed", "5")
    assert "SW_r3" in capsys.readouterr().out
    again = read_result(run)
    assert again.protocol["settings"]["directions"] == 8 and again.protocol["settings"]["seed"] == 5
    assert again.protocol["settings"]["rff_features"] == 32, "as the run was judged before"
    assert again.training == first.training


def test_a_run_and_the_same_images_in_a_folder_are_judged_alike_against_a_run(there, run, capsys):
    done("eval", run, "--against", run, "--count", "120", "--out", "by-run")
    done("sample", run, "--count", "120", "--format", "files", "--out", "drawn")
    done("eval", "drawn", "--against", run, "--out", "by-folder")
    one, two = read_result(there / "by-run"), read_result(there / "by-folder")
    assert one.protocol["real"] == two.protocol["real"] and one.protocol["settings"] == two.protocol["settings"]
    assert {name: score.label for name, score in one.scores.items()} == {
        name: score.label for name, score in two.scores.items()
    }


def test_sample_writes_where_it_says(there, run, tmp_path, capsys):
    done("sample", run, "--classes", "7", "2", "--count", "5", "--format", "npz", "--out", tmp_path / "drawn.npz")
    assert str(tmp_path / "drawn.npz") in capsys.readouterr().out
    with np.load(tmp_path / "drawn.npz") as arrays:
        assert arrays["images"].shape == (5, 1, 8, 8) and arrays["images"].dtype == np.uint8
        assert arrays["labels"].tolist() == [7, 2, 7, 2, 7]


def test_the_report_is_written_of_both_kinds(run, judged, capsys):
    for folder in (run, judged["fresh"]):
        (folder / "report.html").unlink()
        done("report", folder)
        assert str(folder / "report.html") in capsys.readouterr().out
        assert (folder / "report.html").is_file()


def test_prompts_are_scored_by_the_pickscore_in_the_weights(there, run, pictures, tmp_path, capsys):
    for scorer in ("pickscore", "clipscore"):
        write_pickscore(tmp_path / "weights" / scorer)
    (tmp_path / "prompts.txt").write_text("a photo of a {class}")
    words = ["eval", pictures / "fresh", "--against", "mine", "--panel", "pixels", "--out", tmp_path / "out", *JUDGED]
    words += ["--prompts", tmp_path / "prompts.txt", "--weights", tmp_path / "weights"]
    words += ["--prompt-scores", "pickscore,clipscore"]
    done(*words)
    assert 0 <= read_result(tmp_path / "out").scores["clipscore"].mean.value <= 100
    score = read_result(tmp_path / "out").scores["pickscore"]
    low, high = score.mean.ci95
    assert score.notes["rows"] == 128 and low < score.mean.value < high
    assert "PickScore" in capsys.readouterr().out and "PickScore" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "weights" / "pickscore" / "model" / "config.json").unlink()
    assert "PickScore cannot be loaded" in said(capsys, 1, *words)
    assert "irdm sample" in said(capsys, 2, "eval", run, "--prompts", tmp_path / "prompts.txt")


def test_pickscore_is_fetched_by_its_name_and_alone(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("irdm.metrics.pickscore.PickScore.load", lambda **options: asked.append(options))
    monkeypatch.setattr("irdm.encoders.tool.fetch_encoders", lambda *_, **__: pytest.fail("encoders were fetched"))
    done("encoders", "fetch", "pickscore")
    assert asked == [{"fetch": True}] and "pickscore" in capsys.readouterr().out


def test_prompts_are_lines_or_a_template(tmp_path):
    source = open_source(write_pictures(tmp_path / "images", 4, 0))
    file = tmp_path / "prompts.txt"
    file.write_text("a photo of a {class}\n")
    assert read_prompts(file, source) == [f"a photo of a {name}" for name in "aabb"]
    file.write_text("one\ntwo\nthree\nfour\n")
    assert read_prompts(file, source) == ["one", "two", "three", "four"]
    file.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="2 lines and .* 4 images; give a line an image"):
        read_prompts(file, source)


def test_a_folder_whose_name_is_not_utf8_is_judged(there, pictures, tmp_path, capsys):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/fresh\xff"))
    odd.symlink_to(pictures / "fresh")
    done("eval", odd, "--against", "mine", "--panel", "pixels", *JUDGED)
    assert "report: evaluations/" in capsys.readouterr().out


def estimate(value: float, **more) -> Estimate:
    return Estimate(value=value, **more)


def test_the_table_shows_whatever_scores_there_are_and_never_minus_zero():
    scores = {
        "new": Score(
            label="A new score",
            direction="lower",
            says="",
            mean=estimate(12345.6),
            held_out=estimate(1.234, ci95=(1.0, 1.5), control=-0.00001),
        ),
        "each": Score(label="By encoder", direction="lower", says="", encoders={"mae": estimate(0.0123, control=0.5)}),
    }
    result = Result(source={}, reference={}, protocol={}, scores=scores, warnings=("mind this",))
    header, new, each, mae, *notes = score_table(result).splitlines()
    assert header.split() == ["held", "out", "held", "in", "all", "95%", "interval", "real"]
    assert new.split() == ["A", "new", "score", "1.23", "-", "12346", "1.00", "to", "1.50", "0.00"]
    assert each == "By encoder" and mae.split() == ["mae", "0.0123", "0.50"]
    assert "note: mind this" in notes


def test_the_verdict_is_the_first_line():
    near = Estimate(value=0.68, control=0.99, p_real=1e-9)
    scores = {"precision": Score(label="precision", direction="real", says="", mean=near, encoders={"mae": near})}
    first, *rest = score_table(
        Result(source={}, reference={}, protocol={}, scores=scores, verdict=verdict_of(scores))
    ).splitlines()
    assert first == "Not real: 68% precise where real is 99% (mae): visible defects."
    lines = {line.split()[0]: line.split() for line in rest if line}
    assert lines["fidelity"][:4] == ["fidelity", "objects", "<", "0.0001"]
    assert lines["distance"][:3] == ["distance", "not", "known"]
    assert rest.index(next(line for line in rest if line.startswith("precision"))) > 5, "then the table"


def test_the_comparison_says_which_is_better():
    part = {"a": 2.0, "b": 1.0, "difference": -1.0, "ci95": [-1.5, -0.5], "better": "b"} | {"p": 0.01, "corrected": 0.2}
    metrics = {
        "x": {"label": "X", "mean": part, "held_in": None, "held_out": part | {"better": None}, "per_encoder": {}},
        "y": {"label": "Y", "mean": None, "held_in": None, "held_out": None, "per_encoder": {"mae": part}},
    }
    lines = [line.split() for line in comparison_table({"metrics": metrics}).splitlines()[1:]]
    row = ["2.00", "1.00", "-1.00", "-1.50", "to", "-0.50", "0.0100", "0.20"]
    assert lines == [["X", *row, "B", "is", "better"], ["held", "out", *row], ["Y", "mae", *row, "B", "is", "better"]]
