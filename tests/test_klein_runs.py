"""Runs of tiny klein: divided over two processes, drawn for GenEval, and trained against an imported reference."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sharded
import torch
from geneval.small import LINES, write_prompts
from PIL import Image

from irdm.checkpoint import load_checkpoint
from irdm.cli import main
from irdm.conditions import NoSpec, to_bytes
from irdm.controller import ControllerConfig
from irdm.distances import NystromMMDConfig
from irdm.distributed import Ranks
from irdm.generators import MLPConfig
from irdm.generators.klein_tiny import cached_tiny
from irdm.geneval import read_prompts, rendered
from irdm.presets import PRESETS
from irdm.reference.imported import import_reference
from irdm.run import load_run
from irdm.train import train

SCRIPT = Path(sharded.__file__)


def pictures(folder: Path) -> Path:
    """Images with captions, of three shades."""
    folder.mkdir()
    for number in range(120):
        shade = number % 3
        noise = np.random.default_rng(number).normal(80 * shade + 40, 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).resize((32, 32)).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"{shade} {number}")
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Everything that two processes wrote; `resumed` was begun by one."""
    out = tmp_path_factory.mktemp("sharded")
    data = pictures(out / "data")
    cached_tiny()  # once, before there are two
    train(sharded.run_of(data, 2, evaluation=None), out / "resumed")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, SCRIPT, out, data], timeout=500, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "[rank" in line)
    return out


def gap(one, two):
    """The largest difference of two states, as a share of the largest number."""
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max() for name in one) / max(t.abs().max() for t in one.values())


@pytest.mark.parametrize("case", sharded.CASES)
def test_gradients_norms_and_averages_are_those_of_one_process(out, case):
    """Sums and not averages, also after a forward without gradient; adapters on a frozen base; masters of bfloat16."""
    one, two = sharded.look(Ranks(), **sharded.CASES[case]), torch.load(out / "two.pt", weights_only=True)[case]
    assert two["kinds"] == ["DTensor"] and two["frozen"] == [], "all divided, and no gradient where nothing is trained"
    assert two["held"] < 0.7 * one["held"], "each process holds its part"
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-5)
    for what in ("gradients", "weights", "average", "applied"):
        assert gap(one[what], two[what]) < 1e-5, what
    assert gap(two["average"], two["applied"]) == 0


def state(run, step):
    return load_checkpoint(run / "checkpoints" / f"step-{step:08d}").tensors


def test_a_run_is_that_of_one_process_and_is_resumed_from_and_by_one(out, tmp_path):
    alone = tmp_path / "alone"
    train(sharded.run_of(out / "data", 4, evaluation=None, shard=False), alone)
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
             for run in (alone, out / "straight")]  # fmt: skip
    for ours, theirs in zip(*lines, strict=True):
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)
    for run in ("straight", "resumed"):
        for group in ("generator", "ema"):
            assert gap(state(alone, 4)[group], state(out / run, 4)[group]) < 1e-3, (run, group)
    assert state(alone, 4)["training"].keys() == state(out / "straight", 4)["training"].keys()
    train(sharded.run_of(out / "data", 5, evaluation=None, shard=False), out / "resumed")
    assert gap(state(out / "resumed", 4)["generator"], state(out / "resumed", 5)["generator"]) > 0


def test_a_divided_run_looks_and_is_judged(out):
    run = out / "straight"
    assert (run / "samples" / "step-00000002.png").exists() and (run / "result.json").exists()
    checks = [json.loads(line).get("check") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [check is not None for check in checks] == [False, True, False, True]


def test_genevals_prompts_are_drawn_from_a_run_and_from_its_teacher(out, capsys):
    """Student and teacher from one noise: sample 1 of prompt 2 is the generator's own image of that prompt and seed."""
    prompts, run = write_prompts(out), out / "straight"
    assert main(["geneval", "render", str(run), "--prompts", str(prompts), "--samples", "2"]) == 0
    assert "16 images drawn" in capsys.readouterr().out
    loaded, noise = load_run(run), torch.randn(32, 4, 4, generator=torch.Generator().manual_seed(46_000_201))
    with torch.no_grad():
        image = loaded.generator(noise[None], to_bytes([LINES[2]["prompt"]]))[0]
    found = np.array(Image.open(run / "geneval/00002/samples/0001.png")).transpose(2, 0, 1)
    assert np.abs(found - image.numpy() * 255).max() <= 0.51
    words = ["geneval", "render", str(cached_tiny()), "--prompts", str(prompts), "--samples", "2"]
    sizes = ["--size", "32", "--length", "96", "--precision", "float32"]
    assert main([*words, *sizes]) == 2 and "--out is missing" in capsys.readouterr().err
    assert main([*words, "--out", str(out / "teacher")]) == 1 and "tokens" in capsys.readouterr().err
    assert main([*words, *sizes, "--out", str(out / "teacher")]) == 0
    assert len(rendered(out / "teacher", read_prompts(prompts))) == 16
    assert main(["geneval", "render", str(run), "--prompts", str(prompts), "--steps", "4"]) == 2
    assert "--steps is of the teacher" in capsys.readouterr().err


def test_nothing_that_is_written_is_a_pickle(out):
    names = {path.suffix for path in (out / "straight" / "checkpoints").rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json"}


def test_a_run_against_an_imported_reference_is_judged_by_its_own_data(out, tmp_path, monkeypatch, capsys):
    """Bundles under two local encoders, in place of the panel's."""
    names, config = ("pixels", "pca"), sharded.run_of(out / "data", 2, shard=False)
    dataset = config.data.build()
    battery = config.battery.fit(dataset, cache_dir=tmp_path / "encoders")
    dims = {name: SimpleNamespace(dim=battery[name].dim) for name in battery.held_in}
    monkeypatch.setattr("irdm.reference.imported.PANEL", dims)
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    tau = dataset.train.conditions.tau
    for name in names:
        with torch.no_grad():
            rows = torch.cat([battery[name](dataset.train.images), 2 * tau[0 : len(tau)]], dim=1)
        kernel = torch.exp(-torch.cdist(rows, rows).square() / 8)
        bundle = {"Z": rows, "alpha": torch.full((len(rows),), 1 / len(rows)), "sigma": 2.0, "beta": 2.0}
        torch.save({**bundle, "k_rr": kernel.mean().item()}, bundles / f"{name}_joint_M80.pt")
    reference = import_reference("headline", [bundles], tmp_path / "headline")
    local = config.battery.model_copy(update={"held_in": names})
    config = config.model_copy(
        update={"reference": reference.path, "battery": local, "distance": NystromMMDConfig()}
    )  # fmt: skip
    run = tmp_path / "run"
    train(config, run)
    record = json.loads((run / "reference.json").read_text())
    assert record["reference"] == {"name": "headline", "address": reference.address}
    assert record["data_fingerprint"] == dataset.fingerprint and record["floors"] == dict.fromkeys(names)
    assert json.loads((run / "result.json").read_text())["reference"]["name"] == "the data of run"
    assert "floors are not known" in capsys.readouterr().out
    with pytest.raises(ValueError, match="only kind uniform does without"):
        train(config.model_copy(update={"controller": ControllerConfig()}), tmp_path / "gated")
    for path in bundles.iterdir():
        torch.save({**torch.load(path, weights_only=True), "k_rr": 0.5}, path)
    other = import_reference("other", [bundles], tmp_path / "other")
    with pytest.raises(ValueError, match="the reference is another one"):
        train(config.model_copy(update={"reference": other.path, "steps": 3}), run)


def test_unequal_shares_are_refused():
    with pytest.raises(ValueError, match="rollout is 15, which 2 ranks do not share equally.*Take 14"):
        Ranks(0, 2).check(15, True)
    Ranks(0, 2).check(15, False)
    with pytest.raises(ValueError, match="there are 2 ranks"):
        Ranks(0, 2).check(1, False)


def test_a_network_that_cannot_be_divided_says_so():
    network = MLPConfig(width=8, depth=2).build((1, 4, 4), NoSpec())
    with pytest.raises(ValueError, match="'mlp' cannot be divided over processes"):
        Ranks().divide(network.divisible(), "mlp")


def test_no_graph_is_kept_of_divided_weights():
    config = PRESETS["klein-tiny"]()
    assert config.model_copy(update={"shard": True}).graph_bytes == 0 and config.graph_bytes is None
    with pytest.raises(ValueError, match="graph_memory_gib is 2"):
        type(config).model_validate({**config.model_dump(), "shard": True, "graph_memory_gib": 2})
