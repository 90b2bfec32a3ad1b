"""References on disk: what they hold is right, whole, and the same however they were built; else they are refused."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny_reference import CONFIG, SIZE, build_tiny, tiny_battery, tiny_dataset, write_pictures

from irdm import files
from irdm.conditions import Classes
from irdm.data import Dataset, ImagesConfig
from irdm.data.base import TensorSplit
from irdm.distances import ExactMMDConfig, FrechetConfig
from irdm.encoders import IdentityBatteryConfig, LocalBatteryConfig
from irdm.encoders.base import encoder_identity
from irdm.features import extract
from irdm.files import hash_of, locked, read_manifest, write_manifest
from irdm.metrics.tables import row_order
from irdm.ops.gaussian import Moments
from irdm.reference import Reference, build, build_reference, describe, fit_distance, open_reference
from irdm.store import StoredReference, real_identity

PARTS = ("rows", "real/pool", "training/mixed")


def content(path: Path) -> dict[str, bytes]:
    """Every visible file."""
    found = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(path)): file.read_bytes() for file in found}


def flip(path: Path, place: int = -9):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


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
    monkeypatch.setattr("irdm.reference.opened.fit_reference", lambda *a, **k: Reference({}, {}))
    same = {"joint": False, "rollout": 64, "seed": 0}
    assert built.training(["conv"], CONFIG.distance, **same).distances
    for other in ({"joint": True}, {"rollout": 65}, {"seed": 1}):
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
    config = CONFIG.model_copy(update={"table_rows": 64, "only_judge": True})
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
    facts = ("tiny", built.address, plan["train"]["fingerprint"], plan["val"]["fingerprint"], "160 images", "2: a, b")
    for fact in (*facts, "3 x 8 x 8", "rollout of 64", "held out", "marginal"):
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
        judging = build_tiny(pictures, path, CONFIG.model_copy(update={"only_judge": True}))
    assert judging.address == built.address and judging.floors == {} and not (path / "training").exists()
    assert "not fitted" in "\n".join(describe(judging))
    fitted = judging.training(["conv"], CONFIG.distance, joint=False, rollout=64, seed=0)
    assert fitted.floors["conv"] == pytest.approx(built.floors["conv"], rel=1e-6)
    kept = (path / "real/conv/real.safetensors").stat().st_mtime_ns
    whole = build_tiny(pictures, path, command="irdm reference build tiny")
    assert whole.manifest == built.manifest and content(path) == content(built.path)
    assert (path / "real/conv/real.safetensors").stat().st_mtime_ns == kept
    build_tiny(pictures, path, CONFIG.model_copy(update={"only_judge": True}))
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

    later = Config(rollout=64, distance=Later(landmarks=32, kmeans_iterations=3))
    assert build_tiny(pictures, built.path, later).address == built.address
    with pytest.raises(ValueError, match="a reference of something else:\n  training:"):
        build_tiny(
            pictures, built.path, Config(rollout=64, distance=Later(landmarks=32, kmeans_iterations=3, invented=4))
        )


# --- built again -----------------------------------------------------------------------------------------------------


def test_a_killed_build_goes_on_and_makes_the_same_files(built, copied, pictures):
    for lost in ("manifest.json", "val/manifest.json"):
        (copied / lost).unlink()
    for lost in ("training/mixed", "real/pool", "val/shard-00000", "rows"):
        shutil.rmtree(copied / lost)
    kept = (copied / "real/conv/real.safetensors").stat().st_mtime_ns
    with pytest.raises(ValueError, match="unfinished reference"):
        open_reference(copied)
    build_tiny(pictures, copied, command="irdm reference build tiny")
    assert content(copied) == content(built.path)
    assert (copied / "real/conv/real.safetensors").stat().st_mtime_ns == kept


def test_a_finished_reference_is_not_built_again(built, pictures, monkeypatch):
    monkeypatch.setattr(build, "build_store", lambda *a, **k: pytest.fail("nothing is left to do"))
    said = []
    assert build_tiny(pictures, built.path, progress=said.append).manifest == built.manifest
    assert said[-1] == f"{built.path} is there already"


@pytest.mark.parametrize("harm", ["flip", "cut", "delete", "empty", "[]"])
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_file_is_refused_and_repeating_the_command_mends_it(built, copied, pictures, part, harm):
    """As told: the command is repeated, nothing need be deleted. Files named by no error are looked at, too."""
    mended = 0
    for name in sorted(os.listdir(copied / part)):
        path = copied / part / name
        data = path.read_bytes()
        if harm == "delete":
            path.unlink()
        elif harm == "flip":
            flip(path, len(data) // 2)
        else:
            path.write_bytes({"cut": data[:-3], "empty": b"", "[]": b"[]"}[harm])
        with pytest.raises(ValueError, match=rf"{name}.*Repeat the command.*irdm reference build tiny"):
            reference = open_reference(copied)
            assert harm == "flip"
            reference.real(), reference.samples()
            reference.training(reference.names, CONFIG.distance, joint=False, rollout=64, seed=0)
        said = []
        build_tiny(pictures, copied, command="irdm reference build tiny", progress=said.append)
        assert content(copied) == content(built.path)
        mended += 1
        assert any(f"{path} " in line and line.endswith("It is made again.") for line in said), said
    assert mended >= 2


@pytest.mark.parametrize("finished", [True, False])
def test_a_rebuild_blesses_no_damage(built, copied, pictures, finished):
    """Two files are damaged, an error names one, it is deleted and the command repeated: both are made again."""
    flip(copied / "real/mixed/real.safetensors")
    flip(copied / "training/pool/distance.safetensors")
    flip(copied / "train/shard-00000/features-mixed.safetensors")
    shutil.rmtree(copied / "real/conv")
    if not finished:
        (copied / "manifest.json").unlink()
    said = []
    build_tiny(pictures, copied, command="irdm reference build tiny", progress=said.append)
    assert content(copied) == content(built.path)
    for name in ("real/mixed/real", "training/pool/distance", "shard-00000/features-mixed"):
        assert any(f"{name}.safetensors was altered" in line and "made again" in line for line in said), name


def test_random_damage_never_changes_a_number(built, copied, pictures):
    """Any byte of any file: the same features and floors come out, or an error that names a file of the reference."""
    generator = torch.Generator().manual_seed(1)
    names, whole = sorted(content(copied)), content(copied)
    expected = [built.real().train.features["mixed"], built.floors["pool"], built.store("train")["conv"][:]]
    refused = 0
    for _ in range(60):
        name = names[int(torch.randint(len(names), (), generator=generator))]
        place = int(torch.randint(len(whole[name]), (), generator=generator))
        flip(copied / name, place)
        try:
            opened = open_reference(copied)
            opened.samples()
            training = opened.training(["pool"], CONFIG.distance, joint=False, rollout=64, seed=0)
            found = [opened.real().train.features["mixed"], training.floors["pool"], opened.store("train")["conv"][:]]
            assert torch.equal(found[0], expected[0]) and found[1] == expected[1] and torch.equal(found[2], expected[2])
        except ValueError as error:
            assert str(copied) in str(error)
            refused += 1
        (copied / name).write_bytes(whole[name])
    assert refused > 20


def test_a_part_of_another_reference_is_not_taken(built, copied, pictures, tmp_path):
    other = build_tiny(pictures, tmp_path / "other", CONFIG.model_copy(update={"seed": 4}))
    shutil.rmtree(copied / "real/conv")
    shutil.copytree(other.path / "real/conv", copied / "real/conv")
    with pytest.raises(ValueError, match="real/conv/manifest.json was altered"):
        open_reference(copied)
    said = []
    build_tiny(pictures, copied, command="irdm reference build tiny", progress=said.append)
    assert content(copied) == content(built.path)
    assert any("real/conv is of another reference. It is made again." in line for line in said)


@pytest.mark.parametrize("body", [{}, {"plan": {}}, {"plan": [], "name": 1, "address": 2, "command": None}])
def test_a_manifest_with_a_right_checksum_and_a_wrong_content(built, copied, pictures, body):
    write_manifest(copied / "manifest.json", body)
    with pytest.raises(ValueError, match=r"manifest.json is not one of this irdm"):
        open_reference(copied)
    build_tiny(pictures, copied, command="irdm reference build tiny")
    assert content(copied) == content(built.path)


def test_an_altered_manifest_and_another_version_are_refused(copied, monkeypatch):
    manifest = copied / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"name": "tiny"', '"name": "imagenet"'))
    with pytest.raises(ValueError, match="checksum does not match"):
        open_reference(copied)
    manifest.write_text(text)
    monkeypatch.setattr("irdm.store.reference.FORMAT", 9)
    with pytest.raises(ValueError, match="version 2; this irdm reads version 9"):
        open_reference(copied)


def test_a_damaged_plan_costs_nothing(built, copied, pictures):
    flip(copied / "plan.json", 40)
    (copied / "manifest.json").unlink()
    kept = (copied / "real/conv/real.safetensors").stat().st_mtime_ns
    build_tiny(pictures, copied, command="irdm reference build tiny")
    assert content(copied) == content(built.path)
    assert (copied / "real/conv/real.safetensors").stat().st_mtime_ns == kept


def test_a_second_builder_is_refused(copied, pictures):
    (copied / "manifest.json").unlink()
    with locked(copied), pytest.raises(ValueError, match=rf"is being built by process {os.getpid()}"):
        build_tiny(pictures, copied)
    build_tiny(pictures, copied)


def test_a_full_disk_loses_nothing(built, pictures, tmp_path, monkeypatch):
    real, written = files.write_tensors, []

    def full(path, tensors, notes=None):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        return real(path, tensors, notes)

    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=r"real/mixed could not be written: No space.*Make"),
    ):
        patch.setattr("irdm.store.real.write_tensors", full)
        build_tiny(pictures, tmp_path / "full")
    names = ("real/conv/real.safetensors", "real/pool/real.safetensors")
    kept = {name: (tmp_path / "full" / name).stat().st_mtime_ns for name in names}
    assert not [path for path in (tmp_path / "full").rglob(".*") if path.name != ".lock"]
    build_tiny(pictures, tmp_path / "full", command="irdm reference build tiny")
    assert content(tmp_path / "full") == content(built.path)
    assert {name: (tmp_path / "full" / name).stat().st_mtime_ns for name in names} == kept


def test_two_ranks_make_the_reference_of_one(built, pictures, tmp_path):
    script = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from tiny_reference import build_tiny
        from irdm.distributed import Ranks
        ranks = Ranks.start("cpu")
        build_tiny(Path({str(pictures)!r}), Path({str(tmp_path)!r}) / "two", ranks=ranks, micro_batch=37)
    """
    (tmp_path / "build.py").write_text(textwrap.dedent(script))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, tmp_path / "build.py"], timeout=300, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    two = open_reference(tmp_path / "two")
    assert two.address == built.address
    for name in built.names:  # the micro-batch may round features differently
        assert two.floors[name] == pytest.approx(built.floors[name], rel=1e-4)
    torch.testing.assert_close(two.store("val")["mixed"][:], built.store("val")["mixed"][:], rtol=1e-5, atol=1e-6)


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
    with pytest.raises(ValueError, match=r"holds 48 image\(s\); a reference needs at least 50"):
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
    images = torch.cat([dataset.val.images[:60], dataset.train.images[:20]])
    labels = torch.cat([dataset.val.conditions.labels[:60], dataset.train.conditions.labels[:20]])
    val, said = TensorSplit(images, Classes(labels, ("a", "b"))), []
    train = TensorSplit(dataset.train.images, dataset.train.conditions)
    only = CONFIG.model_copy(update={"only_judge": True})
    build_reference("x", Dataset("x", train, val), tiny_battery(), tmp_path / "x", only, progress=said.append)
    assert "warning: 20 of the 80 val images are also train images" in said


def test_other_classes_in_val_are_refused_unless_only_judged(pictures, tmp_path):
    dataset = tiny_dataset(pictures)
    val = TensorSplit(dataset.val.images, Classes(dataset.val.conditions.labels, ("a", "c")))
    odd = Dataset("odd", dataset.train, val)
    with pytest.raises(ValueError, match="have other classes"):
        build_reference("odd", odd, tiny_battery(), tmp_path / "odd", CONFIG)
    only = CONFIG.model_copy(update={"only_judge": True})
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
    config = LocalBatteryConfig(held_in=("supervised", "patches"), held_out=("pca",), steps=2, dim=8, width=2)
    fitted = config.fit(dataset)
    only = CONFIG.model_copy(update={"only_judge": True})
    reference = build_tiny(pictures, tmp_path / "reference", only, battery=fitted, battery_config=config)
    images = torch.rand(5, 3, SIZE, SIZE)
    again = open_reference(reference.path).battery()
    assert again.held_in == ("supervised", "patches") and again.held_out == ("pca",)
    for name, encoder in fitted.encoders.items():
        assert torch.equal(again[name](images), encoder(images))
    some = reference.battery(["pca", "patches"])
    assert some.held_in == ("patches",) and some.held_out == ("pca",)


def test_images_without_classes_make_a_reference_without_classifiers(tmp_path):
    for seed, side in enumerate(("train", "val")):
        write_pictures(tmp_path / side, 60, seed, classes=1)
    config = LocalBatteryConfig(held_in=("supervised", "pixels"), held_out=("supervised_mlp", "pca"), steps=1)
    battery = config.fit(tiny_dataset(tmp_path))
    assert battery.held_in == ("pixels",) and battery.held_out == ("pca",)
    options = {"battery": battery, "battery_config": config}
    reference = build_tiny(tmp_path, tmp_path / "reference", CONFIG.model_copy(update={"rollout": 32}), **options)
    assert reference.spec.width == 0 and len(reference.real().train.conditions) == 60
    assert reference.samples().conditions.captions() == [""] * 60 and set(reference.battery().encoders) == {
        "pixels",
        "pca",
    }
    fitted = reference.training(["pixels"], CONFIG.distance, joint=True, rollout=32, seed=0)
    assert fitted.floors["pixels"] == pytest.approx(reference.floors["pixels"])


def test_the_identity_battery_comes_back(pictures, tmp_path):
    config = IdentityBatteryConfig()
    options = {"battery": config.fit(tiny_dataset(pictures)), "battery_config": config}
    reference = build_tiny(pictures, tmp_path / "r", CONFIG.model_copy(update={"only_judge": True}), **options)
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
