"""References that are killed, damaged or crowded: mended to the byte by the same command, or refused by name."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny_reference import CONFIG, build_tiny, content, flip

from irdm import files
from irdm.files import locked, write_manifest
from irdm.reference import build, open_reference

PARTS = ("rows", "real/pool", "training/mixed")


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


@pytest.mark.parametrize(
    "name",
    [
        "plan.json",
        "val/identity.json",
        "train/shard-00000/manifest.json",
        "train/shard-00000/features-conv.safetensors",
        "val/shard-00000/rows.safetensors",
    ],
)
def test_a_finished_reference_is_mended_where_judging_never_reads(built, copied, pictures, name):
    flip(copied / name, 40)
    build_tiny(pictures, copied, command="irdm reference build tiny")
    assert content(copied) == content(built.path)


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
    with pytest.raises(ValueError, match="version 3; this irdm reads version 9"):
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
