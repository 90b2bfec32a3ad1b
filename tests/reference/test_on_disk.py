"""References on disk: what they hold is right, whole, and the same however they were built; else they are refused."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from tiny_reference import CONFIG, SIZE, build_tiny, content, tiny_battery, tiny_dataset, write_pictures

from irdm.conditions import Classes
from irdm.data import Dataset, ImagesConfig
from irdm.data.base import TensorSplit
from irdm.distances import ExactMMDConfig, FrechetConfig
from irdm.encoders import IdentityBatteryConfig, LocalBatteryConfig
from irdm.encoders.base import encoder_identity
from irdm.features import extract
from irdm.files import hash_of, read_manifest
from irdm.metrics.tables import row_order
from irdm.ops.gaussian import Moments
from irdm.reference import Reference, build, build_reference, describe, fit_distance, open_reference
from irdm.reference.opened import what_is_fitted
from irdm.store import StoredReference, real_identity

# --- what is in one --------------------------------------------------------------------------------------------------


def test_distances_and_floors_are_those_of_the_features_in_memory(built):
    train, val = built.store("train"), built.store("val")
    ready = built.training(["pool", "conv"], CONFIG.distance, joint=False, rollout=64, seed=0)
    assert list(ready.distances) == ["conv", "pool"] and ready.floors["conv"] == built.floors["conv"] > 0
    conditions = (train.conditions, val.conditions)
    distance, floor = fit_distance(
        CONFIG.distance, train["conv"][:], val["conv"][:], conditions, joint=False, rollout=64, seed=0
    )
    fake = torch.randn(40, 6)
    torch.testing.assert_close(ready.distances["conv"](fake), distance(fake))
    assert ready.floors["conv"] == floor


def test_what_is_not_fitted_is_fitted_from_the_stores(built, monkeypatch):
    exact = ExactMMDConfig(pool_rows=500)
    fitted = built.training(["conv"], exact, joint=True, rollout=100, seed=5)
    train = built.store("train")
    expected = exact.build().fit(train["conv"][:], train.conditions.tau[:], seed=5)
    fake, tau = torch.randn(30, 6), Classes(torch.arange(30) % 2, ("a", "b")).tau[:]
    torch.testing.assert_close(fitted.distances["conv"](fake, tau), expected(fake, tau))
    some = built.training(["conv", "pool"], exact, joint=("conv",), rollout=100, seed=5)
    torch.testing.assert_close(some.distances["conv"](fake, tau), expected(fake, tau))
    assert some.floors["conv"] == fitted.floors["conv"] and not some.distances["pool"].tau_width
    asked = what_is_fitted(exact, joint=("conv",), rollout=100, seed=5)
    assert asked == json.loads(json.dumps(asked)), "found again in a plan that was written"
    monkeypatch.setattr("irdm.reference.opened.fit_reference", lambda *a, **k: Reference({}, {}))
    same = {"joint": False, "rollout": 64, "seed": 0}
    assert built.training(["conv"], CONFIG.distance, **same).distances
    for other in ({"joint": True}, {"joint": ("conv",)}, {"rollout": 65}, {"seed": 1}):
        assert not built.training(["conv"], CONFIG.distance, **{**same, **other}).distances
    finer = CONFIG.distance.model_copy(update={"landmarks": 33})
    assert not built.training(["conv"], finer, **same).distances
    with pytest.raises(ValueError, match="has no encoder dinov2"):
        built.training(["dinov2"], CONFIG.distance, **same)


def test_the_real_side_is_that_of_the_images_in_memory(built, pictures):
    dataset, battery = tiny_dataset(pictures), tiny_battery()
    real = built.real()
    assert real.held_out == ("mixed",) and list(real.train.features) == ["conv", "pool", "mixed"]
    for side, table in (("train", real.train), ("val", real.val)):
        split = getattr(dataset, side)
        order = row_order(len(split), CONFIG.seed)
        expected = extract(dict(battery.encoders.items()), split.images[order])
        for name, rows in expected.items():
            torch.testing.assert_close(table.features[name], rows, rtol=1e-5, atol=1e-6)
        assert table.conditions.fingerprint == split.conditions[order].fingerprint
    moments = Moments.of([built.store("train")["conv"][:]])
    torch.testing.assert_close(real.moments["conv"].covariance, moments.covariance)
    assert real.moments["conv"].count == 160
    identities = {name: encoder_identity(encoder) for name, encoder in battery.encoders.items()}
    assert real.identity == real_identity(dataset, identities, battery.held_out, table_rows=50_000, seed=0)
    assert list(built.real(["mixed", "conv"]).val.features) == ["conv", "mixed"]


def test_tables_are_cut_and_moments_are_not(pictures, tmp_path):
    config = CONFIG.model_copy(update={"table_rows": 64, "judge_only": True})
    real = build_tiny(pictures, tmp_path / "reference", config).real()
    assert len(real.train) == len(real.val) == 64 and real.train.features["conv"].shape == (64, 6)
    assert real.moments["conv"].count == 160


def test_samples_are_val_images_with_their_captions(built, pictures):
    samples, val = built.samples(), tiny_dataset(pictures).val
    assert samples.images.shape == (60, 3, SIZE, SIZE)
    known = {image.numpy().tobytes(): row for row, image in enumerate(val.images)}
    rows = torch.tensor([known[image.numpy().tobytes()] for image in samples.images])
    captions = samples.conditions.captions()
    assert captions == val.conditions[rows].captions() and set(captions) == {"a", "b"}


def test_show_names_images_encoders_counts_seeds_floors_and_hashes(built):
    text, plan = "\n".join(describe(built)), built.plan
    facts = ("tiny", built.address, plan["train"]["fingerprint"], plan["val"]["fingerprint"], "160 images")
    for fact in (*facts, "2 classes: a, b", "3 x 8 x 8", "rollout of 64", "held out", "marginal"):
        assert fact in text
    for name, identity in plan["encoders"].items():
        assert name in text and identity in text and f"{built.floors[name]:.4g}" in text


def test_a_floor_that_is_not_known_is_kept_as_that(pictures, tmp_path):
    config = CONFIG.model_copy(update={"distance": FrechetConfig(), "rollout": 5000})
    reference = build_tiny(pictures, tmp_path / "reference", config)
    assert reference.floors == {"conv": None, "pool": None, "mixed": None}
    assert "unknown" in "\n".join(describe(reference))


def test_to_judge_only_fits_nothing_and_training_can_be_added(built, pictures, tmp_path, monkeypatch):
    path = tmp_path / "reference"
    with monkeypatch.context() as patch:
        patch.setattr(build, "fit_distance", lambda *a, **k: pytest.fail("no distance is asked for"))
        judging = build_tiny(pictures, path, CONFIG.model_copy(update={"judge_only": True}))
    assert judging.address == built.address and judging.floors == {} and not (path / "training").exists()
    assert "not fitted" in "\n".join(describe(judging))
    fitted = judging.training(["conv"], CONFIG.distance, joint=False, rollout=64, seed=0)
    assert fitted.floors["conv"] == pytest.approx(built.floors["conv"], rel=1e-6)
    kept = (path / "real/conv/real.safetensors").stat().st_mtime_ns
    whole = build_tiny(pictures, path, command="irdm reference build tiny")
    assert whole.manifest == built.manifest and content(path) == content(built.path)
    assert (path / "real/conv/real.safetensors").stat().st_mtime_ns == kept
    build_tiny(pictures, path, CONFIG.model_copy(update={"judge_only": True}))
    assert content(path) == content(built.path), "what is there stays"


def test_judging_needs_no_store_and_no_training_half(copied):
    for part in ("train", "val"):
        shutil.rmtree(copied / part)
    reference = StoredReference(copied)
    assert len(reference.real().train) == 160 and len(reference.samples()) == 60
    with pytest.raises(ValueError, match="no store"):
        reference.store("train")


def test_a_new_field_at_its_default_changes_no_address(built, pictures):
    class Later(CONFIG.distance.__class__):
        invented: int = 3

    class Config(build.ReferenceConfig):
        distance: Later = Later()
        more: bool = False

    later = Config(rollout=64, distance=Later(landmarks=32, kmeans_iterations=3), ladder=0)
    assert build_tiny(pictures, built.path, later).address == built.address
    with pytest.raises(ValueError, match="a reference of something else:\n  training:"):
        build_tiny(
            pictures, built.path, Config(rollout=64, distance=Later(landmarks=32, kmeans_iterations=3, invented=4))
        )


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_directory_of_something_else_is_left_alone(built, copied, pictures, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("dear diary")
    with pytest.raises(ValueError, match=r"holds todo.txt and is no reference"):
        build_tiny(pictures, tmp_path / "notes")
    assert os.listdir(tmp_path / "notes") == ["todo.txt"]
    with pytest.raises(ValueError, match=r"a reference of something else:\n  seed: 0 there, 1 now"):
        build_tiny(pictures, copied, CONFIG.model_copy(update={"seed": 1}))
    assert content(copied) == content(built.path)


def test_too_few_images_the_same_images_and_no_micro_batch(pictures, tmp_path):
    path = tmp_path / "reference"
    with pytest.raises(ValueError, match=r"has 48 train image\(s\); at least 50"):
        build_reference("few", tiny_dataset(pictures, limit=48), tiny_battery(), path)
    dataset = tiny_dataset(pictures)
    with pytest.raises(ValueError, match="160 of the 160 held-out images"):
        build_reference("same", Dataset("same", dataset.train, dataset.train), tiny_battery(), path)
    for micro_batch in (0, -1):
        with pytest.raises(ValueError, match=f"micro-batch of {micro_batch}"):
            build_reference("none", dataset, tiny_battery(), path, micro_batch=micro_batch)
    assert not list(tmp_path.iterdir())


def test_some_shared_images_are_counted(pictures, tmp_path):
    dataset = tiny_dataset(pictures)
    train, said = TensorSplit(dataset.train.images, dataset.train.conditions), []
    only = CONFIG.model_copy(update={"judge_only": True})

    def build(copies):
        images = torch.cat([dataset.val.images[:60], dataset.train.images[:copies]])
        labels = torch.cat([dataset.val.conditions.labels[:60], dataset.train.conditions.labels[:copies]])
        both = Dataset("x", train, TensorSplit(images, Classes(labels, ("a", "b"))))
        return build_reference("x", both, tiny_battery(), tmp_path / "x", only, progress=said.append)

    with pytest.raises(ValueError, match="20 of the 80 held-out images .* are also training images .*: image 60, "):
        build(20)
    build(1)
    assert "warning: 1 of the 61 val images are also train images" in said


def test_other_classes_in_val_are_refused_unless_judge_onlyd(pictures, tmp_path):
    dataset = tiny_dataset(pictures)
    val = TensorSplit(dataset.val.images, Classes(dataset.val.conditions.labels, ("a", "c")))
    odd = Dataset("odd", dataset.train, val)
    with pytest.raises(ValueError, match="have other classes"):
        build_reference("odd", odd, tiny_battery(), tmp_path / "odd", CONFIG)
    only = CONFIG.model_copy(update={"judge_only": True})
    real = build_reference("odd", odd, tiny_battery(), tmp_path / "odd", only).real()
    assert real.train.conditions.names == ("a", "b") and real.val.conditions.names == ("a", "c")


def test_only_the_encoders_that_made_it_pass(built):
    built.check(dict(tiny_battery().encoders.items()))
    with pytest.raises(ValueError, match="The encoders conv, mixed are not those that made the reference tiny"):
        built.check(dict(tiny_battery(seed=4).encoders.items()))  # `pool` has no weights
    with pytest.raises(ValueError, match="no encoder inception: it has conv, pool, mixed"):
        built.chosen(["inception"])
    with pytest.raises(ValueError, match="encoders of your own; pass them"):
        built.battery()


# --- encoders --------------------------------------------------------------------------------------------------------


def test_a_local_battery_comes_back_from_the_reference(pictures, tmp_path):
    dataset = tiny_dataset(pictures)
    config = LocalBatteryConfig(held_in=("content", "patches"), held_out=("pca",), steps=2, width=2)
    fitted = config.fit(dataset)
    only = CONFIG.model_copy(update={"judge_only": True})
    reference = build_tiny(pictures, tmp_path / "reference", only, battery=fitted, battery_config=config)
    images = torch.rand(5, 3, SIZE, SIZE)
    again = open_reference(reference.path).battery()
    assert again.held_in == ("content", "patches") and again.held_out == ("pca",)
    for name, encoder in fitted.encoders.items():
        assert torch.equal(again[name](images), encoder(images))
    some = reference.battery(["pca", "patches"])
    assert some.held_in == ("patches",) and some.held_out == ("pca",)


def test_images_without_classes_make_a_reference(tmp_path):
    for seed, side in enumerate(("train", "val")):
        write_pictures(tmp_path / side, 60, seed, classes=1)
    config = LocalBatteryConfig(held_in=("content", "pixels"), held_out=("layout",), steps=1)
    battery = config.fit(tiny_dataset(tmp_path))
    options = {"battery": battery, "battery_config": config}
    reference = build_tiny(tmp_path, tmp_path / "reference", CONFIG.model_copy(update={"rollout": 32}), **options)
    assert reference.spec.width == 0 and len(reference.real().train.conditions) == 60
    assert reference.samples().conditions.captions() == [""] * 60
    assert set(reference.battery().encoders) == {"content", "pixels", "layout"}
    fitted = reference.training(["pixels"], CONFIG.distance, joint=True, rollout=32, seed=0)
    assert fitted.floors["pixels"] == pytest.approx(reference.floors["pixels"])


def test_the_identity_battery_comes_back(pictures, tmp_path):
    config = IdentityBatteryConfig()
    options = {"battery": config.fit(tiny_dataset(pictures)), "battery_config": config}
    reference = build_tiny(pictures, tmp_path / "r", CONFIG.model_copy(update={"judge_only": True}), **options)
    assert reference.battery().held_in == ("identity",) and reference.plan["battery"] == {"kind": "identity"}


def test_the_plan_is_plain_json_that_another_machine_can_make(built, pictures, tmp_path):
    assert read_manifest(built.path / "plan.json", "") == built.plan and hash_of(built.plan) == built.address
    everything = b"".join(content(built.path).values())
    assert str(built.path.parent).encode() not in everything and str(pictures).encode() not in everything
    moved = shutil.copytree(pictures, tmp_path / "elsewhere")
    assert (
        ImagesConfig(train=moved / "train", val=moved / "val").build().fingerprint == tiny_dataset(pictures).fingerprint
    )
    assert build_tiny(moved, built.path).address == built.address
    assert json.loads((built.path / "manifest.json").read_text())["name"] == "tiny"
    assert (
        hashlib.sha256((built.path / "rows/manifest.json").read_bytes()).hexdigest() == built.manifest["parts"]["rows"]
    )
