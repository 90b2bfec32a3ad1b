"""Runs of tiny klein that are refused, and one against an imported reference."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_klein import captioned_pictures

import irdm.train
from irdm.conditions import NoSpec
from irdm.controller import ControllerConfig
from irdm.data import CaptionedConfig
from irdm.distances import NystromMMDConfig
from irdm.distributed import Ranks
from irdm.encoders import LocalBatteryConfig
from irdm.generators import KleinConfig, MLPConfig
from irdm.metrics import EvaluationConfig
from irdm.presets import PRESETS
from irdm.reference.imported import import_reference
from irdm.train import train


def run_of(data: Path, steps: int, **fields):
    """A short run of tiny klein on captioned images."""
    update = {
        "data": CaptionedConfig(path=(data,), embedder="ngrams"),
        "generator": KleinConfig(length=96),
        "battery": LocalBatteryConfig(steps=2, width=2),
        "evaluation": EvaluationConfig(draws=1, directions=16, rff_features=32, resamples=8, ladder=0, quick_rows=40),
        **{"rollout": 16, "micro_batch": 4, "steps": steps, "ema_decay": 0.9, "check_every": 2},
        **{"log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 9},
    }
    return PRESETS["klein-tiny"]().model_copy(update=update | fields)


def test_a_run_against_an_imported_reference_is_judged_by_its_own_data(tmp_path, monkeypatch, capsys):
    """Bundles under two local encoders, in place of the panel's."""
    names, config = ("pixels", "pca"), run_of(captioned_pictures(tmp_path / "data"), 2)
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


def test_memory_of_training_is_given_back_before_a_run_is_judged(tmp_path, monkeypatch):
    """A card that holds weights, gradients and moments need not hold what is judged beside them."""
    built, held = [], []
    place = irdm.train.place_generator
    monkeypatch.setattr(
        irdm.train, "place_generator", lambda *given, **more: built.append(place(*given, **more)) or built[0]
    )
    monkeypatch.setattr(
        irdm.train, "evaluate_run", lambda *_, **__: held.append(sum(p.numel() for p in built[0].parameters()))
    )
    train(PRESETS["digits-smoke"]().model_copy(update={"steps": 2, "ema_decay": 0.9}), tmp_path / "run")
    assert held == [0] and all(p.grad is None for p in built[0].parameters())


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
