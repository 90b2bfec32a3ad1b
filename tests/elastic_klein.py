"""Runs of tiny klein that change their number of ranks, divided (FSDP2) or with adapters; see tests/test_elastic.py.

python elastic_klein.py OUT
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import conftest  # noqa: F401 (mends torchvision)
import diffusers  # noqa: F401 (once, before there are many)
import peft  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.fsdp  # noqa: F401
import transformers  # noqa: F401
from forked import forked
from tiny_klein import captioned_pictures

from irdm.data import CaptionedConfig
from irdm.encoders import LocalBatteryConfig
from irdm.generators import KleinConfig
from irdm.presets import PRESETS
from irdm.train import train

SAVED, STEPS = 2, 4
KINDS = {"divided": {"shard": True}, "adapters": {"generator": KleinConfig(length=96, lora_rank=4)}}
CHANGED = {"divided": (1, 2, 3), "adapters": (1, 3)}


def run(data: Path, out: Path, steps: int, kind: str) -> None:
    """A short run on captioned images; 12 rows are shared by 1 to 4 ranks."""
    update = {
        "data": CaptionedConfig(path=(data,), embedder="ngrams"), "generator": KleinConfig(length=96),
        "battery": LocalBatteryConfig(held_in=("pixels", "pca"), held_out=(), steps=2), "evaluation": None,
        "rollout": 12, "micro_batch": 3, "steps": steps, "ema_decay": 0.9, "checkpoint_every": 1, "keep_checkpoints": 9,
    }  # fmt: skip
    train(PRESETS["klein-tiny"]().model_copy(update=update | KINDS[kind]), out)


def main(out: Path) -> int:
    torch.set_num_threads(1)
    data, codes = captioned_pictures(out / "data"), []
    for kind in KINDS:
        codes += forked(1, run, data, out / kind / "straight", STEPS, kind)
        codes += forked(4, run, data, out / kind / "four", SAVED, kind)
        for size in CHANGED[kind]:
            shutil.copytree(out / kind / "four", out / kind / f"resumed-{size}")
            codes += forked(size, run, data, out / kind / f"resumed-{size}", STEPS, kind)
    return any(codes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
