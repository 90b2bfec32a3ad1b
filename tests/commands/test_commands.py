"""`irdm reference`, `irdm eval --reference`, `irdm compare`, as a user types them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_pickscore import write_pickscore
from tiny_reference import write_pictures

from irdm.cli import main
from irdm.commands import evaluate
from irdm.commands.evaluate import read_prompts
from irdm.data.sources import open_source
from irdm.references import open_reference


@pytest.fixture(scope="module")
def home(pictures, tmp_path_factory):
    """A folder with a reference `mine`, built by the command in a process of its own, from any directory."""
    home = tmp_path_factory.mktemp("home")
    options = ["--size", "8", "--battery-steps", "2", "--rollout", "64", "--limit", "100", "--device", "cpu"]
    sources = ["--train", pictures / "train", "--val", pictures / "val"]
    done = subprocess.run(
        [sys.executable, "-m", "irdm.cli", "reference", "build", "mine", *sources, *options],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "irdm eval SOURCE --reference references/mine" in done.stdout
    return home


@pytest.fixture
def there(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope="module")
def judged(home, pictures):
    """The directories of a fresh and a blurred evaluation."""
    folders = {}
    for name in ("fresh", "blurred"):
        folders[name] = home / f"judged-{name}"
        words = ["eval", pictures / name, "--reference", home / "references" / "mine", "--out", folders[name]]
        assert main([str(word) for word in words]) == 0
    return folders


def test_a_build_and_its_description(there, capsys):
    assert main(["reference", "show", "mine"]) == 0
    text = capsys.readouterr().out
    reference = open_reference(there / "references" / "mine")
    plan = reference.manifest["plan"]
    assert plan["train"]["count"] == plan["val"]["count"] == 100 and plan["training"]["rollout"] == 64
    assert plan["panel"] == "local" and plan["battery"]["steps"] == 2 and len(plan["encoders"]) == 9
    assert reference.manifest["address"] in text and "reference build mine" in text


def test_evaluation_writes_numbers_and_a_page(judged, capsys):
    results = {name: json.loads((out / "result.json").read_text()) for name, out in judged.items()}
    assert results["blurred"]["sw_ratio"]["mean"] > results["fresh"]["sw_ratio"]["mean"]
    for name, out in judged.items():
        assert (out / "report.html").stat().st_size > 20_000
        assert f"--out {out}" in results[name]["command"]


def test_compare_prints_and_writes_the_difference(judged, tmp_path, capsys):
    words = ["compare", judged["fresh"], judged["blurred"] / "result.json", "--out", tmp_path / "difference.json"]
    assert main([str(word) for word in words]) == 0
    text = capsys.readouterr().out
    part = json.loads((tmp_path / "difference.json").read_text())["metrics"]["sw_ratio"]["mean"]
    line = next(line for line in text.splitlines() if line.startswith("sw_ratio"))
    assert [f"{part[key]:.3f}" for key in ("a", "b", "difference")] == line.split()[1:4]
    assert any(line.startswith("frechet_distance pixels") for line in text.splitlines())


def test_compare_refuses_what_does_not_compare(there, judged, pictures, tmp_path, capsys):
    words = ["eval", pictures / "fresh", "--reference", "mine", "--panel", "pixels,pca", "--out", tmp_path / "part"]
    assert main([str(word) for word in words]) == 0
    assert "Partial: 2 of the reference's 9 encoders" in capsys.readouterr().out
    assert main(["compare", str(judged["fresh"]), str(tmp_path / "part")]) == 1
    assert "unlike protocols" in capsys.readouterr().err
    assert main(["compare", str(judged["fresh"]), str(tmp_path)]) == 1
    assert f"There is no {tmp_path / 'result.json'}" in capsys.readouterr().err
    (tmp_path / "result.json").write_text("{")
    assert main(["compare", str(judged["fresh"]), str(tmp_path)]) == 1
    assert "is not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "fresh", "--reference", "nowhere"], "nowhere is no reference: build it, to its end"),
        (
            ["eval", "fresh", "--reference", "mine", "--panel", "dinov2"],
            "has no encoder dinov2: it is of the panel 'local'",
        ),
        (["eval", "no-such", "--reference", "mine"], "There is no no-such; give a folder of images"),
        (["reference", "build", "x", "--train", "no-such", "--val", "no-such"], "There is no no-such"),
        (["reference", "show", "nowhere"], "nowhere is no reference"),
    ],
)
def test_mistakes_get_one_line(there, pictures, words, message, capsys):
    words = [str(pictures / "fresh") if word == "fresh" else word for word in words]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_run_is_drawn_first_and_then_judged_as_any_images(there, monkeypatch, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    asked = []

    def sample_run(run, *, count, seed, format, out):
        asked.append((count, seed, format))
        out.parent.mkdir(exist_ok=True)
        images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        np.savez(out, images=(255 * images).to(torch.uint8).numpy(), labels=np.zeros(count, np.int64))

    monkeypatch.setattr(evaluate, "sample_run", sample_run)
    words = ["eval", str(run), "--reference", "mine", "--panel", "pixels,pca", "--out", str(tmp_path / "out")]
    for _ in range(2):  # the same images come again, and with them the same features
        assert main([*words, "--seed", "3", "--count", "64"]) == 0
    assert asked == 2 * [(64, 3, "npz")]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["sw_ratio"]["mean"] > 1


def test_prompts_are_scored_by_the_pickscore_in_the_weights(there, pictures, tmp_path, capsys):
    write_pickscore(tmp_path / "weights" / "pickscore")
    (tmp_path / "prompts.txt").write_text("a photo of a {class}")
    words = ["eval", pictures / "fresh", "--reference", "mine", "--panel", "pixels", "--out", tmp_path / "out"]
    words += ["--prompts", tmp_path / "prompts.txt", "--weights", tmp_path / "weights"]
    assert main([str(word) for word in words]) == 0
    score = json.loads((tmp_path / "out" / "result.json").read_text())["pickscore"]
    low, high = score["ci95"]
    assert score["rows"] == 128 and low < score["value"] < high
    assert "PickScore" in capsys.readouterr().out and "PickScore" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "weights" / "pickscore" / "model" / "config.json").unlink()
    assert main([str(word) for word in words]) == 1
    assert "PickScore cannot be loaded" in capsys.readouterr().err


def test_pickscore_is_fetched_by_its_name_and_alone(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("irdm.metrics.pickscore.PickScore.load", lambda **options: asked.append(options))
    monkeypatch.setattr("irdm.encoders.tool.fetch_encoders", lambda *_, **__: pytest.fail("encoders were fetched"))
    assert main(["encoders", "fetch", "pickscore"]) == 0
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


def test_eval_of_a_run_alone_stays_as_it_was(tmp_path, capsys):
    assert main(["eval", str(tmp_path)]) == 1
    assert "give a run directory made by `irdm train`" in capsys.readouterr().err
