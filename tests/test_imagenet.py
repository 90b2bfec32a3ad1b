"""The ImageNet recipe, small: photographs, a tiny pixel MeanFlow, tiny random panel encoders, every command in turn."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm")  # the panel: pip install '.[panel]'

from sklearn.datasets import load_sample_images  # noqa: E402
from spec import classes  # noqa: E402
from tiny_panel import write_tiny  # noqa: E402

import irdm.check  # noqa: E402, F401  (before a test shrinks the panel)
from irdm.cli import main  # noqa: E402
from irdm.data.images import Pictures  # noqa: E402
from irdm.encoders import panel as panel_module  # noqa: E402
from irdm.evaluation import read_result  # noqa: E402
from irdm.generators import PixelMeanFlowConfig, save_weights  # noqa: E402
from irdm.presets import PRESETS, limited  # noqa: E402
from irdm.reference import open_reference  # noqa: E402
from irdm.run import read_config, read_record  # noqa: E402

SIDE, NAMES = 32, ("mae", "siglip2", "dinov2")
NETWORK = PixelMeanFlowConfig(width=32, depth=2, heads=2, head_depth=1, patch=8, bottleneck=16)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Crops of scikit-learn's two photographs: a class each, every second crop held out."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        places = [(y, x) for y in range(0, 427 - SIDE, SIDE) for x in range(0, 640 - SIDE, SIDE)]
        for i, (y, x) in enumerate(places):
            path = folder / ("train", "val")[i % 2] / name / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph[y : y + SIDE, x : x + SIDE]).save(path)
    return folder


@pytest.fixture
def recipe(photographs, tmp_path, monkeypatch):
    """`irdm train imagenet` with everything small; returns the folder and the fields."""
    panel = {name: write_tiny(name, tmp_path / "encoders") for name in NAMES}
    monkeypatch.setattr(panel_module, "PANEL", panel_module.PANEL | panel)
    with torch.random.fork_rng():
        save_weights(NETWORK.build((3, SIDE, SIDE), classes(2)), tmp_path / "start.safetensors")
    fields = {f"generator.{name}": value for name, value in NETWORK.model_dump(exclude={"kind"}).items()}
    fields |= {"generator.weights": tmp_path / "start.safetensors", "generator.precision": "bfloat16"}
    fields |= {"data.train": photographs / "train", "data.val": photographs / "val", "data.size": SIDE}
    fields |= {"battery.held_in": NAMES[:2], "battery.held_out": NAMES[2:], "battery.weights": tmp_path / "encoders"}
    fields |= {"distance.landmarks": 64, "rollout": 48, "micro_batch": 20, "steps": 2, "lr": 1e-2, "check_every": 2}
    fields |= {"evaluation.rows": 40, "evaluation.quick_rows": 24, "evaluation.directions": 64}
    fields |= {"evaluation.rff_features": 64, "evaluation.resamples": 8, "generator.gradient_checkpointing": "true"}
    return tmp_path, fields


def options(fields):
    words = []
    for name, value in fields.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def test_reference_check_train_eval_sample_and_report(recipe, photographs, monkeypatch, capsys):
    folder, fields = recipe
    sources = ["--train", str(photographs / "train"), "--val", str(photographs / "val")]
    judged = ["--panel", ",".join(NAMES), "--weights", str(folder / "encoders")]
    reference = folder / "reference"
    build = ["reference", "build", "photographs", *sources, *judged, "--size", str(SIDE), "--rollout", "48"]
    assert main([*build, "--out", str(reference)]) == 0

    # Everything is there, and nothing is read to find that out.
    fields |= {"reference": reference, "distance.landmarks": 4096}
    run = folder / "run"
    capsys.readouterr()
    main(["check", "imagenet", *options(fields), "--out", str(run)])
    found = dict(line.split(maxsplit=2)[1::-1] for line in capsys.readouterr().out.splitlines())
    assert {found[name] for name in ("data", "weights", "encoders", "reference", "disk", "time")} == {"ok"}, found

    # Training never holds the pictures: bounded rows alone are read.
    monkeypatch.setattr(Pictures, "images", property(lambda self: pytest.fail("all pictures were read")))
    assert main(["train", "imagenet", *options(fields), "--out", str(run)]) == 0
    recorded = read_record(run)
    opened = open_reference(reference)
    assert recorded["floors"] == {name: opened.floors[name] for name in NAMES[:2]}
    assert recorded["reference"]["address"] == opened.address
    result = read_result(run)
    assert set(result.scores["sw_ratio"].encoders) == set(NAMES) and result.training["steps"] == 2
    assert (run / "report.html").stat().st_size < 5e6

    # The weights that training started from are not needed any more, and sampling needs no data.
    (folder / "start.safetensors").unlink()
    assert main(["eval", str(run)]) == 0
    assert read_result(run).scores == result.scores
    assert main(["train", "imagenet", *options(fields), "--out", str(run)]) == 0, "a finished run, resumed at its end"
    monkeypatch.setattr("irdm.data.images.open_source", lambda path: pytest.fail("the data was opened"))
    assert main(["sample", str(run), "--count", "7", "--format", "npz"]) == 0
    with np.load(run / "samples" / "seed-0.npz") as arrays:
        assert arrays["images"].shape == (7, 3, SIDE, SIDE) and arrays["labels"].tolist() == [0, 1, 0, 1, 0, 1, 0]

    # By the published protocol, against the reference itself.
    out = folder / "evaluation"
    judge = ["eval", str(run), "--against", str(reference), "--weights", str(folder / "encoders")]
    assert main([*judge, "--count", "64", "--out", str(out)]) == 0
    assert read_result(out).scores["sw_ratio"].label == "SW_r3"


def test_a_limit_is_a_whole_run_without_a_reference(recipe, capsys):
    folder, fields = recipe
    assert main(["train", "imagenet", *options(fields), "--limit", "120", "--out", str(folder / "smoke")]) == 0
    assert read_record(folder / "smoke")["sizes"] == {"train": 120, "val": 120}
    config = read_config(folder / "smoke" / "config.json")
    assert (config.rollout, config.steps, config.preset) == (48, 2, "imagenet-limit-120")


def test_what_is_missing_comes_in_one_list(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRDM_WEIGHTS", str(tmp_path / "none"))
    assert main(["check", "imagenet"]) == 1
    shown = capsys.readouterr()
    lines = {line.split()[1]: line for line in shown.out.splitlines()}
    for name, says in {
        "data": "imagenet/train",
        "weights": "--generator.weights",
        "encoders": "irdm encoders fetch inception convnext",
        "reference": "irdm reference build",
    }.items():
        assert lines[name].startswith("MISSING") and says in lines[name] and name in shown.err
    assert "955.51M" in lines["generator"] and "56.5 GiB a device" in lines["memory"] and "41.6 PFLOP" in lines["time"]
    if not torch.cuda.is_available():
        assert "days. It needs a GPU" in lines["time"]
        advised = re.search(r"--limit (\d+) tries", lines["time"])
        assert advised and limited(PRESETS["imagenet"](), int(advised[1])).steps == 2


def test_an_impossible_network_leaves_nothing_behind(recipe, capsys):
    folder, fields = recipe
    assert main(["train", "imagenet", *options(fields | {"generator.patch": 7}), "--out", str(folder / "run")]) == 1
    assert "patch" in capsys.readouterr().err and not (folder / "run").exists()
    fields |= {"generator.weights": folder / "absent.pth"}
    assert main(["train", "imagenet", *options(fields), "--out", str(folder / "run")]) == 1
    assert "absent.pth" in capsys.readouterr().err and not (folder / "run").exists()
