"""A run against a reference on disk: what fits is used as it is, what does not is refused in one message."""

import json

import pytest
import torch
from tiny_reference import CONFIG, SIZE, build_tiny, built, pictures, tiny_panel  # noqa: F401  (two are fixtures)

from irdm.data import ImagesConfig
from irdm.data.sources import open_source
from irdm.encoders import LocalBatteryConfig, PanelBatteryConfig
from irdm.presets import PRESETS
from irdm.references import local_battery
from irdm.run import MetricsLog, build_battery, build_training_reference, restore_generator

BATTERY = LocalBatteryConfig(held_in=("pixels", "denoising"), held_out=("pca",), steps=2)


def configured(folder, reference, **fields):
    data = ImagesConfig(train=folder / "train", val=folder / "val", size=SIZE)
    update = {"data": data, "reference": reference, "distance": CONFIG.distance, "rollout": CONFIG.rollout}
    return PRESETS["digits"]().model_copy(update=update | {"joint": False, "battery": BATTERY} | fields)


def prepare(config, battery=None):
    said = []
    dataset = config.data.build()
    battery = battery or build_battery(config, dataset, "cpu", said.append)
    return battery, build_training_reference(config, dataset, battery, "cpu", said.append), said


@pytest.fixture(scope="module")
def local(pictures, tmp_path_factory):  # noqa: F811
    """A reference whose encoders were fitted to its own images."""
    panel = local_battery(open_source(pictures / "train"), SIZE, BATTERY)
    return build_tiny(pictures, tmp_path_factory.mktemp("local") / "reference", panel=panel)


def test_encoders_distances_and_floors_are_those_of_the_reference(pictures, local):  # noqa: F811
    battery, reference, said = prepare(configured(pictures, local.path))
    assert reference.floors == {name: local.floors[name] for name in BATTERY.held_in} and not said
    rows = torch.rand(20, 3, SIZE, SIZE)
    for name in BATTERY.held_in:
        features = battery[name](rows)
        assert torch.equal(reference.distances[name](features), local.distances[name](features))


def test_what_the_reference_was_not_built_for_is_fitted_from_its_features_and_said(pictures, local):  # noqa: F811
    _, reference, said = prepare(configured(pictures, local.path, joint=True))
    assert int(reference.distances["pixels"].tau_width) == 2 and "fitting anew" in said[0]
    _, reference, said = prepare(configured(pictures, local.path, rollout=32))
    assert reference.floors["pixels"] > local.floors["pixels"] and "fitting anew" in said[0]
    data = ImagesConfig(train=pictures / "train", val=pictures / "val", size=SIZE, limit=40)
    _, reference, said = prepare(configured(pictures, local.path, data=data))
    assert len(said) == 1 and said[0].startswith("the reference is of ") and said[0].endswith("; train has 40")


def test_another_panel_or_other_images_are_refused(pictures, local, built):  # noqa: F811
    for path, battery, says in (
        (local.path, BATTERY.model_copy(update={"steps": 3}), "battery.steps is 3, there 2"),
        (local.path, PanelBatteryConfig(), "battery.kind is panel, there local"),
        (built.path, BATTERY, "battery.kind is local, there own"),
    ):
        with pytest.raises(ValueError, match=says):
            prepare(configured(pictures, path, battery=battery))
    size = ImagesConfig(train=pictures / "train", val=pictures / "val", size=2 * SIZE)
    classes = ImagesConfig(train=pictures / "train" / "a", val=pictures / "val" / "a", size=SIZE)
    for data in (size, classes):
        with pytest.raises(ValueError, match=f"2 classes of images of {SIZE} pixels a side"):
            prepare(configured(pictures, local.path, data=data), tiny_panel().battery)
    with pytest.raises(ValueError, match="no reference"):
        prepare(configured(pictures, pictures))


def test_a_restored_network_is_the_saved_one_and_shares_nothing(tmp_path):
    config = PRESETS["digits"]()
    torch.manual_seed(1)
    saved = config.generator.build((1, 8, 8), 10)
    weights = saved.state_dict()
    restored = restore_generator(config, (1, 8, 8), 10, weights, "cpu")
    noise, labels = torch.randn(4, 64), torch.arange(4)
    assert torch.equal(restored(noise, labels), saved(noise, labels))
    assert all(p.requires_grad for p in restored.parameters())
    with torch.no_grad():
        next(restored.parameters()).zero_()
    assert next(saved.parameters()).any()
    with pytest.raises(RuntimeError, match="size mismatch"):
        restore_generator(config, (1, 4, 4), 10, weights, "cpu")


def test_the_log_drops_what_comes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    MetricsLog(path, 2, write=True).write({"step": 3, "loss": float("nan"), "scores": {"a": float("inf")}})
    MetricsLog(path, 0, write=False).write({"step": 9})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1}, {"step": 2}, {"step": 3, "loss": None, "scores": {"a": None}},
    ]  # fmt: skip
