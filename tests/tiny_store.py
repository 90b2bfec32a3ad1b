"""A store of features in a second, and ways to spoil it."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from irdm.data.images import pictures_like
from irdm.data.sources import open_source
from irdm.store import build_store

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


def write_tar(folder, path):
    """The same images as a webdataset: key.png beside key.cls."""
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            label = str("abcdefg".index(file.parent.name)).encode()
            for suffix, data in (("png", file.read_bytes()), ("cls", label)):
                info = tarfile.TarInfo(f"{file.stem}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(folder, path, group=9):
    """The same images as a table of bytes and classes, a few rows a group."""
    import pyarrow
    from pyarrow import parquet

    files = sorted(folder.rglob("*.png"))
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    labels = ["abcdefg".index(file.parent.name) for file in files]
    parquet.write_table(pyarrow.table({"image": images, "label": labels}), path, row_group_size=group)
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


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[-7] ^= 16
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:-4])
    else:
        path.unlink()


SCRIPT = """
    import os, sys, time, torch
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from tiny_store import build, encoders
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
