"""Stores that are killed, damaged, crowded or built twice: whole, mended to the byte, or refused by name."""

import os
import resource
import shutil
import signal
import time

import pytest
from tiny_store import (
    IMAGES,
    build,
    content,
    damage,
    encoders,
    hidden,
    run,
    start,
    wait_for,
)

from irdm.store import FeatureStore


def test_two_ranks_write_the_same_files(folder, built, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    out, _ = run(folder, tmp_path / "store", launcher=launcher)
    assert out.count("finished") == out.count("70") == 2, "lines of two processes may interleave"
    assert content(tmp_path / "store") == content(built.path)


def test_killed_and_interrupted_builds_go_on_and_end_in_the_same_files(folder, built, tmp_path, monkeypatch):
    path = tmp_path / "store"
    for shard, number in ((0, signal.SIGKILL), (1, signal.SIGINT)):
        process = start(folder, path, slow=0.1)
        wait_for(path / f"shard-{shard:05d}", process)
        time.sleep(0.1)  # into the next shard
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode != 0
        with pytest.raises(ValueError, match="unfinished store"):
            FeatureStore(path)
    first = {name: data for name, data in content(path).items() if name.startswith("shard-")}
    times = {name: os.stat(path / name).st_mtime_ns for name in first}
    monkeypatch.setattr("irdm.progress.EVERY", 0)
    out = []
    store = build(folder, path, progress=out.append)
    assert any("of 38 images" in line and "images/s" in line and "left" in line for line in out), out
    assert times == {name: os.stat(path / name).st_mtime_ns for name in first}, "finished shards are not made again"
    assert content(path) == content(built.path) and not hidden(path)
    assert len(store) == IMAGES


def test_a_finished_store_is_found_again(folder, copied):

    def refuse(*_):
        raise AssertionError("nothing should be embedded")

    nets = encoders()
    nets["conv"].register_forward_hook(refuse)
    assert len(build(folder, copied, nets)) == IMAGES


def test_only_one_process_builds_a_store(folder, built, tmp_path):
    path = tmp_path / "store"
    process = start(folder, path, slow=0.2)
    wait_for(path / "shard-00000", process)
    with pytest.raises(ValueError, match=rf"is being built by process {process.pid} on"):
        build(folder, path)
    process.communicate(timeout=120)
    assert process.returncode == 0 and content(path) == content(built.path)


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
@pytest.mark.parametrize("name", ["features-conv.safetensors", "rows.safetensors"])
def test_a_damaged_shard_is_named_and_only_it_is_made_again(folder, built, copied, how, name):
    path = copied
    damage(path / "shard-00002" / name, how)
    with pytest.raises(ValueError, match=r"shard-00002.*Delete .*shard-00002 and repeat"):
        store = FeatureStore(path)
        assert how == "flip", "sizes are compared when a store is opened"
        assert store["pixels.8"][:].shape == (IMAGES, 192)
        with pytest.raises(ValueError, match=r"shard-00002.*was altered.*repeat"):
            store.verify()
        if name.startswith("features"):
            assert store["conv"][:32].shape == (32, 5), "other shards can be read"
            store["conv"][30:34]
        else:
            _ = store.conditions
    if how == "flip":  # as the message says
        shutil.rmtree(path / "shard-00002")
    kept = os.stat(path / "shard-00001" / name).st_mtime_ns
    build(folder, path).verify()
    assert content(path) == content(built.path)
    assert os.stat(path / "shard-00001" / name).st_mtime_ns == kept


def test_a_rebuild_blesses_no_damage(folder, built, copied, monkeypatch):
    """One shard is missing, so the command is repeated; bytes of two others are not what was written."""
    damage(copied / "shard-00001" / "features-conv.safetensors", "flip")
    damage(copied / "shard-00003" / "rows.safetensors", "flip")
    shutil.rmtree(copied / "shard-00000")
    monkeypatch.setattr("irdm.progress.EVERY", 0)
    said = []
    build(folder, copied, progress=said.append)
    assert content(copied) == content(built.path)
    for shard, name in ((1, "features-conv"), (3, "rows")):
        assert [
            line
            for line in said
            if f"shard-0000{shard}/{name}.safetensors was altered" in line and "made again" in line
        ]
    assert any("of 48 images" in line for line in said), "three shards, no more"


def test_a_thorough_build_reads_even_a_finished_store(folder, built, copied):
    damage(copied / "shard-00001" / "features-conv.safetensors", "flip")
    build(folder, copied)
    with pytest.raises(ValueError, match="was altered"):
        FeatureStore(copied).verify()
    build(folder, copied, thorough=True)
    assert content(copied) == content(built.path)


def test_a_shard_of_another_store_is_not_taken(folder, built, copied, tmp_path):
    other = build(folder, tmp_path / "other", seed=5)
    shutil.rmtree(copied / "shard-00001")
    shutil.copytree(other.path / "shard-00001", copied / "shard-00001")
    (copied / "manifest.json").unlink()
    build(folder, copied)
    assert content(copied) == content(built.path)


@pytest.mark.parametrize("how", ["flip", "delete", "cut", "[]", "{}"])
def test_a_damaged_manifest_is_named(folder, built, copied, how):
    manifest = copied / "manifest.json"
    if how.startswith(("[", "{")):
        manifest.write_text(how)
    elif how == "flip":
        manifest.write_text(manifest.read_text().replace('"seed": 1', '"seed": 3'))
    else:
        damage(manifest, how)
    with pytest.raises(ValueError, match="manifest.json"):
        FeatureStore(copied)
    build(folder, copied)
    assert content(copied) == content(built.path)


def test_a_store_of_something_else_is_refused_and_kept(folder, copied, tmp_path):
    store = FeatureStore(copied)
    before = content(store.path)
    with pytest.raises(ValueError, match=r"is a store of something else:\n  seed: 1 there, 2 now"):
        build(folder, store.path, seed=2)
    assert content(store.path) == before and len(FeatureStore(store.path)) == IMAGES
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="thesis.txt and is no store"):
        build(folder, tmp_path / "papers")
    assert [file.name for file in (tmp_path / "papers").iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="no store"):
        FeatureStore(tmp_path / "papers")
    with pytest.raises(ValueError, match="no features of 'dino'"):
        store["dino"]


def full_disk(writes):
    """An fsync that finds the disk full after some calls."""
    done = []

    def fsync(fd):
        done.append(fd)
        if len(done) > writes:
            raise OSError(28, "No space left on device")

    return fsync


def test_a_full_disk_keeps_the_finished_shards(folder, built, tmp_path, monkeypatch):
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="shard-00002 could not be written: No space left.*Make room"),
    ):
        synced = 2 + 2 * (5 * 2 + 2) + 2  # the claim; two shards of five files in two folders; a file more
        patch.setattr(os, "fsync", full_disk(synced))
        build(folder, tmp_path / "store")
    shards = [name.name for name in (tmp_path / "store").glob("*shard*")]
    assert sorted(shards) == ["shard-00000", "shard-00001"] and not hidden(tmp_path / "store")
    build(folder, tmp_path / "store")
    assert content(tmp_path / "store") == content(built.path)


def test_a_file_that_cannot_grow_is_one_clear_error(folder, tmp_path):
    limit = (10_000, 10_000)  # bytes of a file; a shard of pixels has 12 KB
    _, err = run(folder, tmp_path / "store", code=1, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert "File too large" in err and "shard-00000 could not be written" in err
    assert not list((tmp_path / "store").glob("*shard*"))
