"""The store of features: every row once, whatever the conditions, and the same however it was built."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_store import (
    IMAGES,
    SHARD,
    SIZE,
    build,
    content,
    encoders,
    hidden,
    pictures,
)
from torch import nn

from irdm.conditions import Unconditional
from irdm.data.base import TensorSplit
from irdm.features import extract, thumbnails
from irdm.files import hash_of, read_manifest, write_manifest
from irdm.metrics.tables import row_order
from irdm.ops.rows import Rows, row_blocks, sample_rows
from irdm.ops.sampling import generator_for
from irdm.store import FeatureStore, build_store, store_identity


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


def test_thumbnails_lie_beside_the_features(folder, built, tmp_path):
    split = pictures(folder)
    small = built.thumbnails
    assert small is not None and small.shape == (IMAGES, 3, SIZE, SIZE) and small[:3].dtype == torch.uint8
    assert torch.equal(small[:], (split.images[built.index] * 255).round().to(torch.uint8)), "images that are small"
    points = TensorSplit(torch.rand(9, 6, 1, 1), Unconditional(9))
    assert build_store(points, {"flat": nn.Flatten()}, tmp_path / "points").thumbnails is None


def test_large_images_are_averaged_and_halves_rounded_up():
    levels = torch.randint(0, 256, (5, 3, 64, 96), generator=torch.Generator().manual_seed(0))
    means = levels.unflatten(3, (32, 3)).unflatten(2, (32, 2)).double().mean((3, 5))
    expected = (means + 0.5).floor().to(torch.uint8)
    small = thumbnails(levels.float() / 255)
    assert small.shape == (5, 3, 32, 32) and torch.equal(small, expected)
    assert (means % 1 == 0.5).sum() > 500, "ties are many"


def test_files_are_plain_safetensors(built):
    file = built.path / "shard-00004" / "features-conv.safetensors"
    assert torch.equal(load_file(file)["rows"], built["conv"][64:70])
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
    freed_at_once = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # else what glibc keeps for later is measured as well
    env = {**os.environ, **freed_at_once, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
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
