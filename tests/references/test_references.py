"""References: what they hold is right, whole, and the same however they were built; everything else is refused."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny_reference import CONFIG, SIZE, build_tiny, tiny_panel, write_pictures

from irdm.checkpoint import claimed
from irdm.data.limited import Limited
from irdm.data.sources import open_source
from irdm.distances import ExactMMDConfig
from irdm.encoders import LocalBatteryConfig
from irdm.judging import Judge, evaluate_source
from irdm.reference import embed_labels, fit_distance
from irdm.references import build, build_references, describe, local_battery, open_reference
from irdm.references.panels import panel_battery


def digests(path):
    return {name: file["sha256"] for name, file in open_reference(path).manifest["files"].items()}


def flip(path: Path, place: int = -9):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_distances_and_floors_are_those_of_the_features_in_memory(built):
    train, val = built.store("train"), built.store("val")
    fake = torch.randn(40, 6)
    distance, floor = fit_distance(
        CONFIG.distance,
        train["conv"][:],
        val["conv"][:],
        (train.labels, val.labels),
        2,
        joint=False,
        rollout=CONFIG.rollout,
        seed=CONFIG.seed,
    )
    torch.testing.assert_close(built.distances["conv"](fake), distance(fake))
    assert built.floors["conv"] == floor > 0


def test_training_takes_what_is_fitted_and_fits_what_is_not(built, monkeypatch):
    ready = built.training(["pool", "conv"], CONFIG.distance, joint=False)
    assert ready.floors == {name: built.floors[name] for name in ("conv", "pool")}

    exact = ExactMMDConfig(pool_rows=500)
    fitted = built.training(["conv"], exact, joint=True, rollout=100, seed=5)
    train = built.store("train")
    expected = exact.build().fit(train["conv"][:], embed_labels(train.labels, 2), seed=5)
    fake, tau = torch.randn(30, 6), embed_labels(torch.arange(30) % 2, 2)
    torch.testing.assert_close(fitted.distances["conv"](fake, tau), expected(fake, tau))
    with pytest.raises(ValueError, match="has no encoder dinov2"):
        built.training(["dinov2"], CONFIG.distance, joint=False)


def test_a_killed_build_goes_on_and_makes_the_same_files(built, copied, pictures, monkeypatch):
    for lost in ("manifest.json", "training/mixed.safetensors", "judging/pool.safetensors", "val/manifest.json"):
        (copied / lost).unlink()
    shutil.rmtree(copied / "val" / "shard-00000")
    kept = (copied / "judging/conv.safetensors").stat().st_mtime_ns
    with pytest.raises(ValueError, match="unfinished reference"):
        open_reference(copied)
    build_tiny(pictures, copied)
    assert digests(copied) == digests(built.path)
    assert (copied / "judging/conv.safetensors").stat().st_mtime_ns == kept


def test_a_finished_reference_is_not_built_again(built, pictures, monkeypatch):
    monkeypatch.setattr(build, "build_store", lambda *a, **k: pytest.fail("nothing is left to do"))
    assert build_tiny(pictures, built.path).manifest == built.manifest


def test_two_ranks_make_the_reference_and_the_scores_of_one(built, pictures, tmp_path):
    script = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from tiny_reference import build_tiny, tiny_panel
        from irdm.data.sources import open_source
        from irdm.distributed import Ranks
        from irdm.judging import evaluate_source
        pictures, out = Path({str(pictures)!r}), Path({str(tmp_path)!r})
        options = {{"ranks": Ranks.start("cpu"), "micro_batch": 37}}
        two = build_tiny(pictures, out / "two", **options)
        encoders = dict(tiny_panel().battery.encoders.items())
        evaluate_source(open_source(pictures / "fresh"), two.judge, out / "judged", encoders=encoders, **options)
    """
    (tmp_path / "build.py").write_text(textwrap.dedent(script))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, tmp_path / "build.py"], check=True, timeout=300, env=environment, capture_output=True)
    two = open_reference(tmp_path / "two")
    assert two.manifest["address"] == built.manifest["address"]
    for name in built.names:  # the micro-batch may round features differently
        assert two.floors[name] == pytest.approx(built.floors[name], rel=1e-4)
    torch.testing.assert_close(two.store("val")["mixed"][:], built.store("val")["mixed"][:], rtol=1e-5, atol=1e-6)
    encoders = dict(tiny_panel().battery.encoders.items())
    alone = evaluate_source(open_source(pictures / "fresh"), built.judge, tmp_path / "alone", encoders=encoders)
    together = json.loads((tmp_path / "judged" / "result.json").read_text())
    assert together["protocol"] == alone["protocol"]
    for name in ("sw_ratio", "mmd_ratio", "frechet_ratio", "precision", "coverage", "closeness"):
        assert together[name]["mean"] == pytest.approx(alone[name]["mean"], rel=1e-3), name


def test_show_names_images_encoders_counts_seeds_floors_and_hashes(built):
    text = "\n".join(describe(built))
    plan = built.manifest["plan"]
    for fact in (
        "tiny",
        built.manifest["address"],
        plan["train"]["fingerprint"],
        plan["val"]["fingerprint"],
        "160 images",
    ):
        assert fact in text
    for name, identity in plan["encoders"].items():
        assert name in text and identity in text and f"{built.floors[name]:.4g}" in text
    assert "held out" in text and "8 x 8" in text and "99999" in text


def test_every_tensor_is_compared_with_its_hash(copied):
    flip(copied / "training/conv.safetensors")
    flip(copied / "judging/pool.safetensors")
    reference = open_reference(copied)
    with pytest.raises(ValueError, match=r"training/conv.safetensors was altered.*Delete it and repeat.*build tiny"):
        reference.distances["conv"]
    with pytest.raises(ValueError, match=r"judging/pool.safetensors was altered"):
        reference.banks["sw_ratio"]


def test_what_is_deleted_as_told_is_made_again(built, copied, pictures):
    (copied / "judging/pool.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pool.safetensors is missing"):
        open_reference(copied)
    assert build_tiny(pictures, copied).manifest["files"] == built.manifest["files"]


def test_an_altered_manifest_is_refused(copied):
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "tiny"', '"name": "imagenet"'))
    with pytest.raises(ValueError, match="checksum does not match"):
        open_reference(copied)


def test_another_version_is_refused(copied, monkeypatch):
    monkeypatch.setattr("irdm.judging.folder.FORMAT", 2)
    with pytest.raises(ValueError, match="version 1; this irdm reads version 2"):
        open_reference(copied)


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_damaged_store_is_named_and_repaired(built, copied, pictures, harm):
    shard = copied / "train" / "shard-00000"
    if harm == "flipped":
        flip(shard / "features-conv.safetensors")
    else:
        shutil.rmtree(shard)
    reference = open_reference(copied)
    assert reference.banks["sw_ratio"].targets, "judging needs no store"
    with pytest.raises(ValueError, match=r"shard-00000.*rebuild"):
        reference.training(["conv"], ExactMMDConfig(), joint=False)
    shutil.rmtree(shard, ignore_errors=True)
    repaired = build_tiny(pictures, copied)
    torch.testing.assert_close(repaired.store("train")["conv"][:], built.store("train")["conv"][:])


def test_a_second_builder_waits(copied, pictures):
    (copied / "manifest.json").unlink()
    with claimed(copied), pytest.raises(ValueError, match=rf"is being built by process {os.getpid()}"):
        build_tiny(pictures, copied)
    build_tiny(pictures, copied)


def test_a_full_disk_loses_nothing(built, pictures, tmp_path, monkeypatch):
    real, written = build.write_atomic, []

    def full(path, data):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        real(path, data)

    monkeypatch.setattr(build, "write_atomic", full)
    with pytest.raises(OSError, match="could not be written. Finished files are kept: make room and repeat"):
        build_tiny(pictures, tmp_path / "full")
    monkeypatch.undo()
    kept = [path.stat().st_mtime_ns for path in written]
    build_tiny(pictures, tmp_path / "full")
    assert digests(tmp_path / "full") == digests(built.path)
    assert [path.stat().st_mtime_ns for path in written] == kept


def test_a_directory_of_something_else_is_left_alone(built, copied, pictures, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("dear diary")
    with pytest.raises(ValueError, match=r"holds todo.txt and is no reference"):
        build_tiny(pictures, tmp_path / "notes")
    other = CONFIG.model_copy(update={"seed": 1})
    with pytest.raises(ValueError, match=r"a reference of something else:\n  seed: 0 there, 1 now"):
        build_tiny(pictures, copied, other)
    assert digests(copied) == digests(built.path)


def test_too_few_images_and_the_same_images_twice(pictures, tmp_path):
    train = open_source(pictures / "train")
    few = Limited(open_source(pictures / "val"), 49)
    with pytest.raises(ValueError, match=r"holds 49 image\(s\); a reference needs at least 50"):
        build_references("few", train, few, tiny_panel(), tmp_path / "few")
    with pytest.raises(ValueError, match="train and val hold the same images"):
        build_references("same", train, train, tiny_panel(), tmp_path / "same")
    assert not list(tmp_path.iterdir())


def test_a_limited_source_is_a_random_part_with_its_own_fingerprint(pictures):
    source = open_source(pictures / "train")
    some = Limited(source, 60, seed=1)
    assert len(some) == 60 and len(set(some.labels.tolist())) == 2
    assert some.fingerprint == Limited(source, 60, seed=1).fingerprint != source.fingerprint
    assert some.read(7) == (pictures / "train" / some.names[7]).read_bytes()
    with pytest.raises(ValueError, match="limit of 0"):
        Limited(source, 0)


def test_only_the_encoders_that_made_it_pass(built):
    built.check(dict(tiny_panel().battery.encoders.items()))
    with pytest.raises(ValueError, match="The encoders conv, mixed are not those that made the reference tiny"):
        built.check(dict(tiny_panel(seed=4).battery.encoders.items()))  # `pool` has no weights
    with pytest.raises(ValueError, match="no encoder inception: it is of the panel 'own', conv, pool, mixed"):
        built.judge.chosen(["inception"])


def test_a_local_battery_comes_back_from_the_reference(pictures, tmp_path):
    train = open_source(pictures / "train")
    config = LocalBatteryConfig(held_in=("supervised", "patches"), held_out=("pca",), steps=2, dim=8, width=2)
    panel = local_battery(train, SIZE, config)
    reference = build_tiny(pictures, tmp_path / "reference", panel=panel)
    images = torch.rand(5, 3, SIZE, SIZE)
    again = Judge(reference.path).battery()
    assert again.held_in == ("supervised", "patches") and again.held_out == ("pca",)
    for name, encoder in panel.battery.encoders.items():
        torch.testing.assert_close(again[name](images), encoder(images))


def test_images_of_one_class_teach_no_classifier(tmp_path):
    write_pictures(tmp_path / "one", 60, 0, classes=1)
    config = LocalBatteryConfig(held_in=("supervised", "pixels"), held_out=("supervised_mlp", "pca"), steps=1)
    assert set(local_battery(open_source(tmp_path / "one"), SIZE, config).battery.encoders) == {"pixels", "pca"}


def test_a_panel_names_every_encoder_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)2 of the 2 encoders cannot be loaded.*mae.*dinov2"):
        panel_battery("mae,dinov2", tmp_path)
    with pytest.raises(ValueError, match="no encoder"):
        panel_battery("mae,unheard", tmp_path)


def test_the_plan_is_plain_json_that_another_machine_can_make(built):
    text = (built.path / "plan.json").read_text()
    assert json.loads(text) == built.manifest["plan"]
    assert str(built.path.parent) not in text
