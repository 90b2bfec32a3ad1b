"""One function makes features of images; whatever engine it is, stores and references have the same bytes."""

import os
import shutil
import signal
import time

import pytest
import torch
from tiny_reference import write_pictures
from tiny_store import IMAGES, SHARD, build, content, encoders, pictures, write_parquet, write_tar
from torch import nn

from irdm.cli import main
from irdm.distributed import Ranks
from irdm.store import build_store
from irdm.store.engine import DECODING, Embedded, plain
from irdm.store.ray_data import on_ray

pytestmark = pytest.mark.timeout(1800)  # a worker imports torch: seconds on a processor of its own


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two processors on this machine, for all tests of this file."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def fatal(network, mark, calls):
    """`network`, whose process dies at this call of it unless a file `mark` says that this has happened."""

    class Fatal(nn.Module):  # inside a function, so that it travels to the workers by its content
        def __init__(self):
            super().__init__()
            self.network, self.calls = network, calls

        def forward(self, images):
            self.calls -= 1
            if not self.calls and not os.path.exists(mark):
                with open(mark, "w") as file:
                    file.write(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return self.network(images)

    return Fatal()


def test_plain_blocks_are_those_of_the_images(folder):
    split, nets = pictures(folder), encoders()
    blocks = torch.randperm(IMAGES)[:21].split(8)
    made = list(plain(split, nets, blocks, "cpu"))
    assert [len(done.features["conv"]) for done in made] == [8, 8, 5] and list(plain(split, nets, [], "cpu")) == []
    for block, done in zip(blocks, made, strict=True):
        assert isinstance(done, Embedded) and torch.equal(done.features["pixels.8"], split.read(block).flatten(1))
        assert {DECODING, ".conv", ".pixels.8"} == set(done.seconds) and min(done.seconds.values()) > 0
        assert torch.equal(done.thumbnails, (split.read(block) * 255).round().to(torch.uint8))


def test_the_next_block_is_read_while_one_is_embedded(folder):
    split, read, embedded = pictures(folder), [], []
    plainly = split.read
    split.read = lambda rows: read.append(len(embedded)) or plainly(rows)
    nets = {"flat": nn.Flatten()}
    nets["flat"].register_forward_hook(lambda *_: embedded.append(len(read)))
    for _ in plain(split, nets, torch.arange(12).split(4), "cpu"):
        while len(read) < min(3, len(embedded) + 1):
            pass  # the thread is on its way
    assert read[0] == 0 and len(read) == 3 and all(ahead <= number for number, ahead in enumerate(read)), read


def test_what_was_spent_is_said(folder, tmp_path):
    said = []
    build(folder, tmp_path / "store", progress=said.append)
    line = next(line for line in said if "decoding was" in line)
    assert line.startswith(f"{IMAGES} images in ") and "% of the work" in line
    assert "conv " in line and "pixels.8 " in line
    said.clear()
    build(folder, tmp_path / "store", progress=said.append)
    assert not said, "nothing was done"


def test_a_store_built_on_ray_is_the_same(folder, built, tmp_path, cluster):
    said = []
    store = build(folder, tmp_path / "store", engine=on_ray(), progress=said.append)
    assert content(store.path) == content(built.path)
    assert any("decoding was" in line and "conv " in line for line in said), said


@pytest.mark.slow
def test_a_worker_that_is_killed_in_a_shard_changes_nothing(folder, built, tmp_path, cluster):
    nets = encoders()
    identity = {name: built.identity["encoders"][name] for name in nets}
    nets["conv"] = fatal(nets["conv"], str(tmp_path / "mark"), 6)  # blocks of 5 rows, 4 a shard
    build(folder, tmp_path / "store", nets, engine=on_ray(), identity=identity)
    assert int((tmp_path / "mark").read_text()) != os.getpid(), "a worker was killed"
    assert content(tmp_path / "store") == content(built.path)


@pytest.mark.slow
def test_a_worker_that_always_dies_ends_in_a_message(folder, tmp_path, cluster):
    nets = {"conv": fatal(encoders()["conv"], str(tmp_path / "none" / "mark"), 1)}
    nets["conv"].forward = lambda images: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(OSError, match="Ray gave up, after 4 retries"):
        build(folder, tmp_path / "store", nets, engine=on_ray(), identity={"conv": "fatal"})


@pytest.mark.slow
def test_what_is_wrong_is_told_as_the_plain_engine_tells_it(folder, tmp_path, cluster):
    class Broken(nn.Module):
        def forward(self, images):
            return images.flatten(1).log()

    mine = shutil.copytree(folder, tmp_path / "mine")
    (mine / "c" / "024.png").write_bytes((mine / "c" / "024.png").read_bytes()[:90])
    for engine in (plain, on_ray()):
        with pytest.raises(ValueError, match="^Encoder 'log' gave NaN or infinity for . of 5 images"):
            build(folder, tmp_path / "store", {"log": Broken()}, engine=engine)
        with pytest.raises(ValueError, match=r"^The image .*c/024\.png cannot be used: it is cut short"):
            build(mine, tmp_path / "other", engine=engine)
    assert not list((tmp_path / "store").glob("shard-*"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_neither_the_number_of_workers_nor_the_kind_of_source_changes_a_byte(folder, tmp_path, cluster, workers):
    """A webdataset tar and Parquet, read by several tasks at once, blocks finishing in any order."""
    cluster.shutdown()
    cluster.init(num_cpus=2 + workers, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
    options = {"seed": 1, "micro_batch": 5, "shard_rows": SHARD}
    for source in (write_tar(folder, tmp_path / "set.tar"), write_parquet(folder, tmp_path / "set.parquet")):
        split, nets = pictures(source), encoders()
        late = nets["conv"]
        late.register_forward_hook(lambda *_: time.sleep(0.05 * (time.time() % 1)))
        one = build_store(split, encoders(), tmp_path / f"plain-{source.suffix}", **options)
        many = build_store(split, nets, tmp_path / f"ray-{source.suffix}", engine=on_ray(workers=workers), **options)
        assert content(one.path) == content(many.path)


@pytest.mark.slow
def test_a_reference_is_built_on_a_cluster_that_is_named(tmp_path, cluster, capsys):
    for seed, side in enumerate(("train", "val")):
        write_pictures(tmp_path / "set" / side, 60, seed)
    address = cluster.get_runtime_context().gcs_address
    for name, more in (("plain", []), ("ray", ["--engine", "ray", "--address", address])):
        places = [f"--{side}={tmp_path / 'set' / side}" for side in ("train", "val")]
        words = ["--judge-only", "--battery.held-in", "pixels", "--battery.held-out", "pca"]
        assert main(["reference", "build", "tiny", *places, *words, *more, "--out", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out.count("decoding was") == 4, "of two sides, by either engine"
    one, many = (content(tmp_path / name) for name in ("plain", "ray"))
    del one["manifest.json"], many["manifest.json"]  # which say by which command they were built
    assert one == many


def test_what_does_not_go_together_is_refused(folder, tmp_path, capsys):
    assert main(["reference", "build", "tiny", "--train", str(folder), "--address", "10.0.0.1:6379"]) == 2
    assert "--address is of a Ray cluster; give --engine ray too" in capsys.readouterr().err
    with pytest.raises(ValueError, match="ray engine is started once, and this is one of 2 processes"):
        build(folder, tmp_path / "store", engine=on_ray(), ranks=Ranks(0, 2))
