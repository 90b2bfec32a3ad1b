"""The configuration: every field is read and explained, every preset builds, what is unknown is refused."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import BaseModel, ValidationError

import irdm
from irdm.distances import NystromMMDConfig
from irdm.generators import PixelMeanFlowConfig
from irdm.overrides import UsageError, assign, describe, override, split_options
from irdm.presets import PRESETS, RunConfig, limited
from irdm.train import learning_rate

SOURCES = [ast.parse(path.read_text()) for path in Path(irdm.__file__).parent.rglob("*.py")]


def models(annotation: object) -> set[type[BaseModel]]:
    """Every config class reachable from a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.values()
        return {annotation}.union(*(models(field.annotation) for field in fields))
    return set().union(*(models(argument) for argument in get_args(annotation)))


CLASSES = sorted(models(RunConfig), key=lambda model: model.__name__)


def preset(name: str, tmp_path: Path) -> RunConfig:
    """A preset with what it leaves to the user."""
    return override(PRESETS[name](), {"data.path": [str(tmp_path / "x.npz")]} if name == "array" else {})


@pytest.mark.parametrize("model", CLASSES, ids=lambda model: model.__name__)
def test_every_field_is_read_by_some_code(model: type[BaseModel]):
    read = {
        node.attr
        for tree in SOURCES
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    unread = set(model.model_fields) - read - {"kind"}  # pydantic reads kind, to choose the class
    assert not unread, f"{model.__name__} promises {unread} and nothing reads it"


@pytest.mark.parametrize("model", CLASSES, ids=lambda model: model.__name__)
def test_every_field_is_explained_and_every_class_is_closed(model: type[BaseModel]):
    fields = {name: field for name, field in model.model_fields.items() if name != "kind"}
    assert not [name for name, field in fields.items() if not field.description]
    assert model.model_config.get("extra") == "forbid"
    assert model.model_config.get("frozen") is True


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_go_through_json(name: str, tmp_path: Path):
    config = preset(name, tmp_path)
    assert config.preset == name
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("array", "imagenet")])
def test_the_parts_of_a_preset_build(name: str):
    config = PRESETS[name]()
    dataset = config.data.build()
    network = config.generator.build(dataset.image_shape, dataset.num_classes)
    assert network.noise_shape
    assert config.distance.build()


def test_the_imagenet_preset_holds_the_published_values():
    config = PRESETS["imagenet"]()
    assert (config.rollout, config.steps, config.lr, config.final_lr, config.warmup) == (5120, 4000, 1.6e-6, 1, 0)
    assert (config.beta1, config.beta2, config.weight_decay, config.clip_norm) == (0.9, 0.95, 0, 1280)
    assert learning_rate(config, 3999) == learning_rate(config, 0) == 1.6e-6
    distance = config.distance
    assert isinstance(distance, NystromMMDConfig)
    assert (distance.landmarks, distance.scale, distance.bandwidths) == (4096, 1.0, (1.0,))
    assert not config.joint and config.self_normalise
    assert (config.controller.kind, config.controller.budget) == ("lagrangian", 10)
    network = config.generator
    assert isinstance(network, PixelMeanFlowConfig) and (network.guidance, network.interval) == (7.0, (0.2, 0.6))
    with torch.device("meta"):
        built = network.build((3, 256, 256), 1000)
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(955.5e6, rel=1e-3)
    assert len(config.battery.held_in) == 10 and len(config.battery.held_out) == 4


def test_limit_cuts_a_run_down_and_keeps_its_recipe():
    start = PRESETS["imagenet"]()
    config = limited(start, 64)
    assert (config.rollout, config.micro_batch, config.steps, config.preset) == (64, 32, 2, "imagenet-limit-64")
    assert config.data.limit == 64 and config.evaluation.rows == 64
    assert (config.generator, config.distance, config.battery) == (start.generator, start.distance, start.battery)
    assert limited(PRESETS["digits"](), 1797).rollout == 1024
    with pytest.raises(ValueError, match="32 images"):
        limited(start, 31)


def test_unknown_keys_raise_at_every_depth():
    for path in ((), ("data",), ("distance",), ("generator",), ("controller",)):
        data = json.loads(PRESETS["digits"]().model_dump_json())
        node = data
        for name in path:
            node = node[name]
        node["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            RunConfig.model_validate(data)


def test_options_split_into_words_and_values():
    words, options = split_options(["digits", "--a.b-c", "1", "-2", "--x=3", "--flag"])
    assert words == ["digits"]
    assert options == {"a.b_c": ["1", "-2"], "x": ["3"], "flag": []}
    with pytest.raises(UsageError, match="twice"):
        split_options(["--a", "1", "--a", "2"])


def test_overrides_reach_every_depth_and_keep_the_rest():
    start = PRESETS["digits"]()
    config = override(start, {"rollout": ["4096"], "battery.steps": ["7"], "distance.bandwidths": ["0.5", "1", "2"]})
    assert (config.rollout, config.battery.steps, config.distance.bandwidths) == (4096, 7, (0.5, 1.0, 2.0))
    changed = {"rollout": config.rollout, "battery": config.battery, "distance": config.distance}
    assert config == start.model_copy(update=changed)
    assert config.battery == start.battery.model_copy(update={"steps": 7})


def test_a_new_kind_takes_its_own_defaults_and_the_same_kind_keeps_the_presets():
    start = override(PRESETS["digits"](), {"distance.scale": ["0.3"], "joint": ["false"]})
    other = override(start, {"distance.condition_bandwidth": ["2"], "distance.kind": ["exact-mmd"]})
    assert other.distance == type(other.distance)(condition_bandwidth=2)
    assert override(start, {"distance.kind": [start.distance.kind]}) == start
    assert start.joint is False
    assert override(start, {"joint": []}).joint is True
    assert override(start, {"micro_batch": ["64"]}).micro_batch == 64
    assert override(start, {"micro_batch": ["none"]}).micro_batch is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rolout": ["1"]}, "no field --rolout; did you mean --rollout?"),
        ({"distance.landmark": ["1"]}, "did you mean --distance.landmarks?"),
        ({"landmarks": ["1"]}, "did you mean --distance.landmarks?"),
        ({"distance.kind": ["exact"]}, "did you mean 'exact-mmd'?"),
        ({"distance": ["exact-mmd"]}, "--distance is a group of fields"),
        ({"distance.kind": ["frechet"], "distance.landmarks": ["9"]}, "--distance.landmarks belongs to"),
        ({"device": ["cudda"]}, "did you mean 'cuda'?"),
        ({"rollout": ["abc"]}, "--rollout is 'abc'"),
        ({"rollout": ["1", "2"]}, "--rollout takes one value, got 2"),
        ({"rollout": []}, "--rollout takes one value, got 0"),
        ({"rollout": ["nan"]}, "--rollout"),
        ({"clip_norm": ["inf"]}, "--clip_norm"),
        ({"micro_batch": ["5000"], "rollout": ["64"]}, "micro_batch is 5000 but the rollout has only 64"),
        ({"data.kind": ["array"]}, "--data.path is required"),
    ],
)
def test_wrong_overrides_say_what_to_do(options: dict[str, list[str]], says: str):
    with pytest.raises(UsageError) as caught:
        override(PRESETS["digits"](), options)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_the_help_lists_every_field_with_its_value(name: str):
    config = PRESETS[name]()
    text = describe(RunConfig, assign(config, {}))
    data = config.model_dump(warnings=False)
    paths = [k for k, v in data.items() if not isinstance(v, dict)]
    paths += [f"{k}.{inner}" for k, v in data.items() if isinstance(v, dict) for inner in v]
    assert not [path for path in paths if f"--{path} " not in text]
    assert ("--data.path PATH  (required)" in text) == (name == "array")
