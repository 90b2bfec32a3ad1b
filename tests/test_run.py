"""A run directory: what it stands on, what a restored network is, and a run against a reference on disk."""

import json

import pytest
import torch
from spec import classes
from tiny_reference import built, pictures, tiny_battery, tiny_dataset  # noqa: F401  (two are fixtures)
from torch import nn

from irdm.build import build_battery, build_training, open_run_reference
from irdm.checkpoint import save_checkpoint
from irdm.conditions import NoSpec
from irdm.data import ImagesConfig
from irdm.distances import NystromMMDConfig
from irdm.distributed import Ranks
from irdm.encoders import LocalBatteryConfig, PanelBatteryConfig
from irdm.files import write_manifest
from irdm.generators import Generator, MLPConfig
from irdm.presets import PRESETS
from irdm.reference import ReferenceConfig, build_reference
from irdm.run import claim_run, load_run, read_config, read_record
from irdm.train import train

BATTERY = LocalBatteryConfig(held_in=("pixels", "bands"), held_out=("pca",), steps=2)
CONFIG = ReferenceConfig(rollout=64, distance=NystromMMDConfig(landmarks=32, kmeans_iterations=3))


def configured(folder, reference, **fields):
    data = ImagesConfig(train=folder / "train", val=folder / "val")
    update = {"data": data, "reference": reference, "distance": CONFIG.distance, "rollout": CONFIG.rollout}
    return PRESETS["digits"]().model_copy(update=update | {"joint": False, "battery": BATTERY} | fields)


def prepare(config):
    said, dataset = [], config.data.build()
    reference = open_run_reference(config, dataset, "cpu")
    battery = build_battery(config, dataset, reference, "cpu", said.append)
    return battery, build_training(config, dataset, battery, reference, "cpu", Ranks(), said.append)


@pytest.fixture(scope="module")
def local(pictures, tmp_path_factory):  # noqa: F811
    """A reference whose encoders were fitted to its own images."""
    dataset, path = tiny_dataset(pictures), tmp_path_factory.mktemp("local") / "reference"
    return build_reference("local", dataset, BATTERY.fit(dataset), path, CONFIG, battery_config=BATTERY)


def test_encoders_distances_and_floors_are_those_of_the_reference(pictures, local):  # noqa: F811
    battery, reference = prepare(configured(pictures, local.path))
    assert reference.floors == {name: local.floors[name] for name in BATTERY.held_in}
    again = local.training(BATTERY.held_in, CONFIG.distance, joint=False, rollout=64, seed=0)
    rows = torch.rand(20, *local.image_shape)
    for name in BATTERY.held_in:
        features = battery[name](rows)
        assert torch.equal(reference.distances[name](features), again.distances[name](features))


def test_what_the_reference_was_not_built_for_is_fitted_from_its_features(pictures, local):  # noqa: F811
    _, reference = prepare(configured(pictures, local.path, joint=True))
    assert int(reference.distances["pixels"].tau_width) == 2
    _, reference = prepare(configured(pictures, local.path, rollout=32))
    assert reference.floors["pixels"] > local.floors["pixels"], "a smaller draw lies further away"


def test_other_encoders_or_other_images_are_refused(pictures, local, built):  # noqa: F811
    for path, battery, says in (
        (local.path, BATTERY.model_copy(update={"steps": 3}), "battery.steps is 3, there 2"),
        (local.path, PanelBatteryConfig(), "battery.kind is panel, there local"),
        (built.path, BATTERY, "battery.kind is local, there own"),
    ):
        with pytest.raises(ValueError, match=says):
            prepare(configured(pictures, path, battery=battery))
    size = ImagesConfig(train=pictures / "train", val=pictures / "val", size=16)
    classes = ImagesConfig(train=pictures / "train" / "a", val=pictures / "val" / "a")
    for data, says in ((size, r"\[3, 16, 16\] with 2 classes"), (classes, "with no classes")):
        with pytest.raises(ValueError, match=says):
            prepare(configured(pictures, local.path, data=data))
    with pytest.raises(ValueError, match="no reference"):
        prepare(configured(pictures, pictures))


class WithTable(Generator):
    """A network with a frozen part and a buffer that is in no state: both must come out of its build."""

    def __init__(self, side):
        super().__init__()
        self.noise_shape = (4,)
        self.linear, self.frozen = nn.Linear(4, side * side), nn.Linear(4, side * side).requires_grad_(False)
        self.register_buffer("table", torch.full((side * side,), 3.0), persistent=False)
        self.side = side

    def forward(self, noise):
        return torch.sigmoid(self.linear(noise) + self.frozen(noise) + self.table).unflatten(1, (1, self.side, -1))


def saved_run(path, network, config, spec=None):
    claim_run(path, config)
    record = {"spec": (spec or NoSpec()).model_dump(mode="json"), "image_shape": [1, 4, 4], "held_in": [], "floors": {}}
    write_manifest(path / "reference.json", record)
    weights = {name: p.detach() for name, p in network.trained().items()}
    save_checkpoint(path / "checkpoints", 1, {"generator": weights, "ema": weights}, {})


def test_a_network_is_built_for_real_and_then_given_its_trained_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(MLPConfig, "build", lambda self, shape, spec: WithTable(shape[1]))
    config = PRESETS["digits-smoke"]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        started = load_or_build(config)
    with torch.no_grad():
        started.linear.weight.add_(1)
    saved_run(tmp_path / "run", started, config)
    loaded = load_run(tmp_path / "run").generator
    assert (loaded.table == 3).all() and torch.equal(loaded.frozen.weight, started.frozen.weight)
    noise = torch.randn(5, 4)
    assert torch.equal(loaded(noise), started(noise))
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training


def load_or_build(config):
    from irdm.build import build_generator

    return build_generator(config, (1, 4, 4), NoSpec())


def test_weights_of_another_network_are_refused_with_their_names(tmp_path):
    config = PRESETS["digits-smoke"]()
    saved_run(tmp_path / "run", MLPConfig(width=8).build((1, 4, 4), classes(3)), config, classes(3))
    with pytest.raises(ValueError, match="another network") as refused:
        load_run(tmp_path / "run")
    assert "embed_noise.weight" in str(refused.value)


@pytest.mark.parametrize("damage", [b"[]", b"{}", b'{"seed": 1}', b"\xff", b'{"a":' * 5000, b""])
@pytest.mark.parametrize("name, read", [("config.json", lambda p: read_config(p)), ("reference.json", read_record)])
def test_damaged_records_are_named_in_one_message(tmp_path, damage, name, read):
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ValueError, match=name):
        read(tmp_path / name if name == "config.json" else tmp_path)


def test_an_altered_number_in_a_run_is_noticed(tmp_path):
    config = PRESETS["digits"]()
    saved_run(tmp_path / "run", MLPConfig().build((1, 4, 4), classes(10)), config, classes(10))
    for name in ("config.json", "reference.json"):
        path = tmp_path / "run" / name
        kept = path.read_text()
        body = json.loads(kept)
        body["seed" if name == "config.json" else "image_shape"] = 5 if name == "config.json" else [1, 4, 5]
        path.write_text(json.dumps(body))
        with pytest.raises(ValueError, match=f"{name} was altered"):
            load_run(tmp_path / "run")
        path.write_text(kept)


def test_a_field_added_later_with_a_default_changes_no_identity():
    config = PRESETS["digits"]()

    class Later(type(config)):  # type: ignore[misc]
        added: int = 7

    assert Later(**config.model_dump()).identity() == config.identity()
    assert Later(**config.model_dump(), **{"added": 8}).identity() != config.identity()
    assert config.model_copy(update={"device": "cpu", "micro_batch": 3}).identity() == config.identity()


def test_a_network_whose_buffers_training_would_change_is_refused(tmp_path, monkeypatch):
    class Normalised(WithTable):
        def __init__(self, side):
            super().__init__(side)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, noise, labels):
            return super().forward(self.norm(noise))

    monkeypatch.setattr(MLPConfig, "build", lambda self, shape, spec: Normalised(shape[1]))
    fast = {"battery": LocalBatteryConfig(held_in=("pixels",), held_out=("pca",)), "evaluation": None}
    config = PRESETS["digits-smoke"]().model_copy(update=fast)
    with pytest.raises(ValueError, match="running statistics of a batch normalisation"):
        train(config, tmp_path / "run")
