"""What tests of klein share: the tiny folder, written once a process, the official pipeline, prompts and noise."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from irdm.conditions import PromptSpec, to_bytes
from irdm.generators import Klein, KleinConfig
from irdm.generators.klein_teacher import load_pipeline
from irdm.generators.klein_tiny import cached_tiny
from irdm.text.contexts import DTYPES

SHAPE = (3, 32, 32)
SPEC = PromptSpec(embedder="none", width=4)
PROMPTS = ["a red cube", "two blue spheres left of a box"]
CAPTIONS = to_bytes(PROMPTS)
LENGTH = 48


def tiny(**fields: Any) -> Klein:
    """A generator on the tiny folder, from seed 0."""
    torch.manual_seed(0)
    return KleinConfig(**fields).build(SHAPE, SPEC)


def noise(count: int = 2) -> torch.Tensor:
    """Each image's from a generator of its own."""
    return torch.stack([torch.randn(32, 4, 4, generator=torch.Generator().manual_seed(7 + i)) for i in range(count)])


@cache
def pipeline(folder: Path | None = None, precision: str = "float32") -> Any:
    """diffusers' own pipeline of a folder."""
    return load_pipeline(folder or cached_tiny(), DTYPES[precision])


def official(pipe: Any, steps: int = 1, **fields: Any) -> torch.Tensor:
    """Its images of the prompts from the noise."""
    given = {"prompt": PROMPTS, "latents": noise(), "height": 32, "width": 32, "max_sequence_length": LENGTH} | fields
    return pipe(num_inference_steps=steps, guidance_scale=1.0, output_type="pt", **given).images.float()


def medium(folder: Path) -> Path:
    """A folder of klein whose transformer has 115 million random numbers in bfloat16, in files of many parts."""
    from diffusers import Flux2Transformer2DModel

    shutil.copytree(cached_tiny(), folder, ignore=shutil.ignore_patterns("transformer"))
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=32, num_layers=2, num_single_layers=3, attention_head_dim=64, num_attention_heads=16,
        joint_attention_dim=48, axes_dims_rope=(16, 16, 16, 16), guidance_embeds=False,
    )  # fmt: skip
    transformer.to(torch.bfloat16).save_pretrained(folder / "transformer", max_shard_size="40MB")
    return folder


def resident(reset: bool = False) -> tuple[float, float]:
    """Bytes of memory that this process holds, and the most that it held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    now, most = (float(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def captioned_pictures(folder: Path) -> Path:
    """Images with captions, of three shades."""
    folder.mkdir()
    for number in range(120):
        shade = number % 3
        noise = np.random.default_rng(number).normal(80 * shade + 40, 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).resize((32, 32)).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"{shade} {number}")
    return folder
