"""Many images, many classes, wide features: what is kept and what is shown stay of a size that can be opened."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from irdm.conditions import Classes
from irdm.data.base import Dataset, Split
from irdm.distances import NystromMMDConfig
from irdm.encoders import Battery, Encoder
from irdm.reference import ReferenceConfig, build_reference, describe


class Noise(Split):
    """Images of many classes that are made as they are read; it counts them."""

    def __init__(self, count, side, classes, seed):
        self.conditions = Classes(torch.arange(count) % classes, tuple(f"class {i}" for i in range(classes)))
        self.image_shape, self.name, self.seed, self.most = (3, side, side), f"noise {seed}", seed, 0

    def read(self, rows):
        self.most = max(self.most, len(rows))
        return torch.stack([self.one(row) for row in rows.tolist()])

    def one(self, row):
        generator = torch.Generator().manual_seed(100_000 * self.seed + row)
        return torch.randint(256, self.image_shape, generator=generator) / 255

    fingerprint = property(lambda self: f"{self.seed} {len(self)}")
    digests = property(lambda self: [f"{self.seed} {row}".encode() for row in range(len(self))])


def battery():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Battery({"a": Encoder("a", 12, network)}, ("a",), ())


def test_a_reference_of_a_thousand_classes_and_large_images_is_light(tmp_path):
    dataset = Dataset("noise", Noise(3000, 64, 1000, 1), Noise(2000, 64, 1000, 2))
    config = ReferenceConfig(
        rollout=500, distance=NystromMMDConfig(landmarks=16, kmeans_iterations=2), table_rows=500, ladder=0
    )
    reference = build_reference("large", dataset, battery(), tmp_path / "r", config, micro_batch=100)
    assert dataset.train.most == dataset.val.most == 100, "images are never all in memory"
    assert len(reference.samples()) == 60 and reference.floors["a"] > 0
    assert len(reference.real().train) == 500 and reference.real().moments["a"].count == 3000
    shown = "\n".join(describe(reference))
    assert "1000 classes: class 0, class 143" in shown and max(map(len, shown.splitlines())) < 200
    sizes = [file.stat().st_size for file in (tmp_path / "r").rglob("*") if file.is_file()]
    assert sum(sizes) < 20_000_000, "features, 3 KB of thumbnail an image, tables of 500 rows, 60 images; no more"


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's own account of memory")
def test_memory_does_not_grow_when_a_large_store_is_repaired(tmp_path):
    """Every kept file is compared with its hash, and a shard is made again, in the memory of a few micro-batches."""
    code = """
        import shutil, sys
        from pathlib import Path
        import torch
        from torch import nn
        from irdm.conditions import Unconditional
        from irdm.data.base import TensorSplit
        from irdm.store import build_store

        def anonymous():
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

        class Wide(nn.Module):
            peak = 0
            def forward(self, images):
                Wide.peak = max(Wide.peak, anonymous())
                return images.flatten(1).repeat(1, 64)

        split = TensorSplit(torch.rand(2000, 1, 16, 16), Unconditional(2000))
        options = {"micro_batch": 32, "shard_rows": 500}
        path = Path(sys.argv[1]) / "store"
        build_store(split, {"wide": Wide()}, path, **options)
        shutil.rmtree(path / "shard-00001")
        before, Wide.peak = anonymous(), 0
        build_store(split, {"wide": Wide()}, path, **options).verify()
        print(max(Wide.peak, anonymous()) - before)
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(
        command, env=env, cwd=os.path.dirname(os.path.dirname(__file__)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    stored = sum(file.stat().st_size for file in (tmp_path / "store").rglob("*") if file.is_file()) // 1024
    assert stored > 120_000 and int(done.stdout) < stored / 5
