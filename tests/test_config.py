"""The configuration: every field is read and explained, every preset builds, what is unknown is refused."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import BaseModel, ValidationError
from spec import classes

import irdm
from irdm.distances import NystromMMDConfig
from irdm.fields import UsageError, read_config
from irdm.generators import PixelMeanFlowConfig
from irdm.overrides import override
from irdm.presets import PRESETS, RunConfig, limited

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
    return override(PRESETS[name](), {"data.path": [str(tmp_path / "x.npz")]} if name == "folder" else {})


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


ON_FILES = {"fashion", "folder", "imagenet", "klein", "klein-tiny"}
"""Presets whose images are the user's."""


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ON_FILES])
def test_the_parts_of_a_preset_build(name: str):
    config = PRESETS[name]()
    dataset = config.data.build()
    network = config.generator.build(dataset.image_shape, dataset.train.conditions.spec)
    assert network.noise_shape
    assert config.distance.build()


def test_the_imagenet_preset_holds_the_published_values():
    config = PRESETS["imagenet"]()
    assert (config.rollout, config.steps, config.lr, config.final_lr, config.warmup) == (5120, 4000, 1.6e-6, 1, 0)
    assert (config.beta1, config.beta2, config.weight_decay, config.clip_norm) == (0.9, 0.95, 0, 1280)
    assert config.learning_rate(3999) == config.learning_rate(0) == 1.6e-6
    distance = config.distance
    assert isinstance(distance, NystromMMDConfig)
    assert (distance.landmarks, distance.scale, distance.bandwidths) == (4096, 1.0, (1.0,))
    assert not config.joint and config.self_normalise
    assert (config.controller.kind, config.controller.budget) == ("lagrangian", 10)
    network = config.generator
    assert isinstance(network, PixelMeanFlowConfig) and (network.guidance, network.interval) == (7.0, (0.2, 0.6))
    with torch.device("meta"):
        built = network.build((3, 256, 256), classes(1000))
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(955.5e6, rel=1e-3)
    assert len(config.battery.held_in) == 10 and len(config.battery.held_out) == 4


@pytest.mark.parametrize(
    ("words", "joint"), [((), True), (("true",), True), (("off",), False), (("content,pixels",), ("content", "pixels"))]
)
def test_encoders_are_matched_jointly_or_not_or_some_are(words, joint, tmp_path):
    config = override(PRESETS["digits"](), {"joint": words})
    assert config.joint == joint
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert read_config(RunConfig, tmp_path / "config.json").joint == joint


def test_joint_names_encoders_that_train():
    with pytest.raises(UsageError, match=r"joint names layout, pixel, but the encoders that train are pixels, pca"):
        override(PRESETS["digits"](), {"joint": ["layout pixel pca"]})


def test_limit_cuts_a_run_down_and_keeps_its_recipe():
    start = PRESETS["imagenet"]()
    config = limited(start, 120)
    assert (config.rollout, config.micro_batch, config.steps, config.preset) == (120, 32, 2, "imagenet-limit-120")
    assert config.data.limit == 120 and config.evaluation.rows == 120
    assert (config.generator, config.distance, config.battery) == (start.generator, start.distance, start.battery)
    assert limited(PRESETS["digits"](), 1797).rollout == PRESETS["digits"]().rollout
    with pytest.raises(ValueError, match="120 images"):
        limited(start, 119)


def test_unknown_keys_raise_at_every_depth():
    for path in ((), ("data",), ("distance",), ("generator",), ("controller",)):
        data = json.loads(PRESETS["digits"]().model_dump_json())
        node = data
        for name in path:
            node = node[name]
        node["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            RunConfig.model_validate(data)
