"""The store of features: every row once, the same for any number of processes, whole or refused by name."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from irdm.conditions import Unconditional
from irdm.data.base import TensorSplit
from irdm.data.images import pictures_like
from irdm.data.sources import open_source
from irdm.features import extract
from irdm.files import hash_of, read_manifest, write_manifest
from irdm.metrics.tables import row_order
from irdm.ops.rows import Rows, row_blocks, sample_rows
from irdm.ops.sampling import generator_for
from irdm.store import FeatureStore, build_store, store_identity

IMAGES, SIZE, SHARD = 70, 8, 16


def encoders():
    """Two networks that every process makes alike."""
    torch.manual_seed(3)
    convolution = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(54, 5))
    return {"conv": convolution, "pixels.8": nn.Flatten()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(IMAGES):
        name = path / "abcdefg"[i // 10] / f"{i:03d}.png"  # sorted by class, as on disk
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (9 + i % 3, 12, 3)).astype(np.uint8)).save(name)
    return path


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    """A finished store, which no test may alter."""
    return build(folder, tmp_path_factory.mktemp("built") / "store")


def pictures(folder, size=SIZE):
    return pictures_like(open_source(folder), (3, size, size))


def build(folder, path, nets=None, **options):
    settings = {"seed": 1, "micro_batch": 5, "shard_rows": SHARD} | options
    return build_store(pictures(folder), nets or encoders(), path, **settings)


@pytest.fixture
def copied(built, tmp_path):
    """A finished store of the test's own."""
    return Path(shutil.copytree(built.path, tmp_path / "store"))


def content(path):
    """Every visible file of a store."""
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def hidden(path):
    return [file.name for file in path.iterdir() if file.name.startswith(".") and file.name != ".lock"]


def test_rows_are_those_of_direct_extraction(folder, built):
    split = pictures(folder)
    expected = extract(encoders(), split.images)
    assert torch.equal(built.index, row_order(IMAGES, 1)) and sorted(built.index.tolist()) == list(range(IMAGES))
    assert built.conditions.fingerprint == split.conditions[built.index].fingerprint
    assert built.conditions.spec == split.conditions.spec and built.conditions.spec.names == tuple("abcdefg")
    for name in built.encoders:
        rows = built[name]
        assert isinstance(rows, Rows) and rows.shape == (IMAGES, expected[name].shape[1]) and len(rows) == IMAGES
        assert torch.allclose(rows[:], expected[name][built.index], atol=1e-6)
    assert len(built) == IMAGES and "conv" in built and "other" not in built


def test_files_are_plain_safetensors(built):
    file = built.path / "shard-00004" / "features-conv.safetensors"
    assert torch.equal(load_file(file)["features"], built["conv"][64:70])
    assert len(list(built.path.glob("shard-*"))) == 5


def test_the_first_rows_are_a_random_sample(built, folder, tmp_path):
    strata = built.conditions.strata
    assert len(strata[:14].unique()) >= 4  # in the order of the folders there would be two
    assert (strata.diff() != 0).float().mean() > 0.6
    assert not torch.equal(build(folder, tmp_path / "other", seed=2).index, built.index)


def test_indexing_is_that_of_a_tensor(built):
    rows, whole = built["conv"], built["conv"][:]
    for index in (slice(3, 40), slice(60, 999), slice(-9, None), slice(None, None, 7), slice(50, 2, -3), slice(5, 5)):
        positions = range(*index.indices(IMAGES))
        assert torch.equal(rows[index], whole[list(positions)] if len(positions) else whole[:0])
    index = torch.tensor([69, 0, 17, 17, -1, 33])
    assert torch.equal(rows[index], whole[index])
    assert rows[torch.tensor([], dtype=torch.int64)].shape == (0, 5)
    rows[0:3].zero_()
    assert torch.equal(rows[:], whole), "what is read is a copy"
    for wrong, error in ((torch.tensor([70]), IndexError), (torch.ones(70, dtype=torch.bool), TypeError)):
        with pytest.raises(error):
            rows[wrong]


def test_blocks_and_samples_are_those_of_a_tensor(built):
    rows = built["conv"]
    assert torch.equal(torch.cat(list(row_blocks(rows, 9))), rows[:])
    draw = sample_rows(rows, 10, generator_for(0))
    assert torch.equal(draw, sample_rows(rows[:], 10, generator_for(0)))


class Words:
    """Conditions that are no classes: n rows of two tensors, and a spec that makes them again."""

    def __init__(self, codes, masks):
        self.codes, self.masks = codes, masks

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, rows):
        return Words(self.codes[rows], self.masks[rows])

    @property
    def state(self):
        return {"codes": self.codes, "masks": self.masks}

    strata = tau = None
    fingerprint = "words"

    def inputs(self, device="cpu"):
        return {}

    def captions(self):
        return [""] * len(self)

    class spec:  # noqa: N801
        @staticmethod
        def identity():
            return {"kind": "words"}


def test_any_condition_comes_back_row_by_row(tmp_path, monkeypatch):
    images = torch.rand(23, 1, 4, 4)
    options = {"shard_rows": 10, "seed": 2}
    words = Words(torch.randn(23, 2, 3).half(), torch.arange(46).view(23, 2) % 3 == 0)
    store = build_store(TensorSplit(images, words), {"flat": nn.Flatten()}, tmp_path / "words", **options)

    class Adapter:
        def __init__(self, _):
            pass

        def validate_python(self, spec):
            assert spec == {"kind": "words"}
            return type("Spec", (), {"restore": staticmethod(lambda n, state: Words(state["codes"], state["masks"]))})

    monkeypatch.setattr("irdm.store.reader.TypeAdapter", Adapter)
    assert torch.equal(store.conditions.codes, words.codes[store.index])
    assert torch.equal(store.conditions.masks, words.masks[store.index]) and store.conditions.masks.dtype == torch.bool
    monkeypatch.undo()
    plain = build_store(TensorSplit(images, Unconditional(23)), {"flat": nn.Flatten()}, tmp_path / "plain", **options)
    assert isinstance(plain.conditions, Unconditional) and len(plain.conditions) == 23
    assert torch.equal(plain["flat"][:], images.flatten(1)[plain.index])


@pytest.mark.parametrize("micro_batch", [1, 16, 70, 999])
def test_the_micro_batch_changes_nothing_but_rounding(folder, built, tmp_path, micro_batch):
    other = build(folder, tmp_path / "store", micro_batch=micro_batch)
    assert torch.equal(other.index, built.index) and other.address == built.address
    for name in built.encoders:
        assert torch.allclose(other[name][:], built[name][:], atol=1e-6)


def test_the_size_of_a_shard_changes_no_row(folder, built, tmp_path):
    other = build(folder, tmp_path / "store", shard_rows=70)
    assert torch.equal(other.index, built.index)
    assert torch.allclose(other["conv"][:], built["conv"][:], atol=1e-6)


def test_the_address_is_of_content(folder, built, tmp_path):
    def address(nets=None, size=SIZE, **options):
        identity = store_identity(
            pictures(folder, size), nets or encoders(), **{"seed": 1, "shard_rows": SHARD} | options
        )
        return hash_of(identity)

    assert address() == built.address
    nets = encoders()
    nets["conv"][0].weight.data[0, 0, 0, 0] += 1e-3
    names = {"conv": "revision 1", "pixels.8": "-"}
    others = [address(nets), address(size=9), address(seed=2), address(identity=names), address({"conv": nets["conv"]})]
    assert len({built.address, *others}) == 6
    with pytest.raises(ValueError, match="identity names"):
        address(identity={"conv": "x"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch": 0}, "micro_batch 0"),
        ({"micro_batch": -1}, "micro_batch -1"),
        ({"shard_rows": 0}, "shard_rows 0"),
        ({"nets": {"": nn.Flatten()}}, "expected names of letters"),
        ({"nets": {"../conv": nn.Flatten()}}, "expected names of letters"),
    ],
)
def test_what_cannot_be_built_leaves_nothing(folder, built, tmp_path, options, message):
    """A store that was begun with these must not stand in the way of the right call."""
    with pytest.raises(ValueError, match=message):
        build(folder, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()
    assert content(build(folder, tmp_path / "store").path) == content(built.path)


def test_no_images_and_no_encoders_are_refused(folder, tmp_path):
    empty = TensorSplit(torch.empty(0, 3, 8, 8), Unconditional(0), "nothing")
    with pytest.raises(ValueError, match="nothing holds no images"):
        build_store(empty, encoders(), tmp_path / "store")
    with pytest.raises(ValueError, match="Got the encoders"):
        build_store(pictures(folder), {}, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_manifest_of_other_encoders_than_its_identity_is_no_store(folder, built, copied):
    """Such as one of no encoder at all, which was once written when a micro-batch was empty."""
    body = read_manifest(copied / "manifest.json", "")
    for record in body["shards"]:
        record["files"] = {"rows.safetensors": record["files"]["rows.safetensors"]}
    write_manifest(copied / "manifest.json", {**body, "dims": {}})
    with pytest.raises(ValueError, match="other rows or encoders than its identity says"):
        FeatureStore(copied)
    assert content(build(folder, copied).path) == content(built.path)


def test_encoders_that_do_not_give_a_row_an_image_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"Encoder 'sum' made \[1, 192\] of 5 images"):
        build(folder, tmp_path / "store", {"sum": nn.Sequential(nn.Flatten(), Sum())})
    assert not list((tmp_path / "store").glob("shard-*")) and not hidden(tmp_path / "store")


class Sum(nn.Module):
    def forward(self, rows):
        return rows.sum(0, keepdim=True)


SCRIPT = """
    import os, sys, time, torch
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from test_store import build, encoders
    from irdm.distributed import Ranks

    torch.set_num_threads(1)
    nets = encoders()
    if {slow}:
        nets["conv"].register_forward_hook(lambda *_: time.sleep({slow}))
    store = build(Path({folder!r}), Path({path!r}), nets, ranks=Ranks.start("cpu"))
    print("finished", len(store))
"""


def start(folder, path, slow=0.0, launcher=(), limit=None):
    """Build in another process."""
    script = path.parent / f"{path.name}.py"
    names = {"tests": os.path.dirname(__file__), "slow": slow, "folder": str(folder), "path": str(path)}
    script.write_text(textwrap.dedent(SCRIPT).format(**names))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    command = [sys.executable, *launcher, str(script)]
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit, cwd=path.parent
    )


def run(*args, code=0, **options):
    process = start(*args, **options)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out, err


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_ranks_write_the_same_files(folder, built, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    out, _ = run(folder, tmp_path / "store", launcher=launcher)
    assert out.count("finished 70") == 2
    assert content(tmp_path / "store") == content(built.path)


def test_killed_and_interrupted_builds_go_on_and_end_in_the_same_files(folder, built, tmp_path):
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
    out = []
    store = build(folder, path, progress=out.append)
    assert any("/ 38 images" in line and "images/s" in line and "left" in line for line in out), out
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


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[-7] ^= 16
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:-4])
    else:
        path.unlink()


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


def test_a_rebuild_blesses_no_damage(folder, built, copied):
    """One shard is missing, so the command is repeated; bytes of two others are not what was written."""
    damage(copied / "shard-00001" / "features-conv.safetensors", "flip")
    damage(copied / "shard-00003" / "rows.safetensors", "flip")
    shutil.rmtree(copied / "shard-00000")
    said = []
    build(folder, copied, progress=said.append)
    assert content(copied) == content(built.path)
    for shard, name in ((1, "features-conv"), (3, "rows")):
        assert [
            line
            for line in said
            if f"shard-0000{shard}/{name}.safetensors was altered" in line and "made again" in line
        ]
    assert any("/ 48 images" in line for line in said), "three shards, no more"


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
        synced = 2 + 2 * (4 * 2 + 2) + 2  # the claim; two shards of four files in two folders; a file more
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


def test_images_that_cannot_be_used_stop_the_build_by_name(folder, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    (mine / "c" / "024.png").write_bytes((mine / "c" / "024.png").read_bytes()[:90])
    with pytest.raises(ValueError, match=r"c/024\.png cannot be used"):
        build(mine, tmp_path / "store")
    assert not hidden(tmp_path / "store")


def test_features_that_are_not_finite_stop_the_build_by_name(folder, tmp_path):
    class Broken(nn.Module):
        def forward(self, images):
            return images.flatten(1).log()

    with pytest.raises(ValueError, match="Encoder 'log' gave NaN or infinity"):
        build(folder, tmp_path / "store", {"log": Broken()})


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's own account of memory")
def test_memory_does_not_grow_with_the_store(tmp_path):
    """Twelve times the images: the anonymous memory of building and reading stays where it was."""
    code = """
        import sys, numpy as np, torch
        from pathlib import Path
        from torch import nn
        from irdm.data.images import pictures_like
        from irdm.data.sources import open_source
        from irdm.ops.rows import row_blocks
        from irdm.store import build_store

        def anonymous():
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

        class Wide(nn.Module):
            peak = 0
            def forward(self, images):
                Wide.peak = max(Wide.peak, anonymous())
                return images.flatten(1).repeat(1, 20)

        out = Path(sys.argv[1])
        for n in (128, 1536):
            np.save(out / f"{n}.npy", np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3)).astype(np.uint8))
            split = pictures_like(open_source(out / f"{n}.npy"), (3, 16, 16))
            store = build_store(split, {"wide": Wide()}, out / str(n), micro_batch=64, shard_rows=2048)
            for block in row_blocks(store["wide"], 64):
                Wide.peak = max(Wide.peak, anonymous())
            print(Wide.peak)
    """
    (tmp_path / "memory.py").write_text(textwrap.dedent(code))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    command = [sys.executable, "memory.py", str(tmp_path)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    small, large = (int(line) for line in done.stdout.split())
    stored = sum(len(data) for data in content(tmp_path / "1536").values()) // 1024
    assert stored > 90_000 and large - small < stored / 3, (small, large, stored)


def test_the_manifest_names_no_place(folder, built):
    text = (built.path / "manifest.json").read_text() + (built.path / "identity.json").read_text()
    assert str(folder) not in text and str(built.path) not in text
    assert json.loads(text[: text.rindex("}{") + 1])["identity"]["images"]["count"] == IMAGES
