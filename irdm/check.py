"""What a run needs, and whether it is there: packages, a device, data, a place to write and room on the disk."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import torch

from irdm.presets import RunConfig
from irdm.run import cache_dir, resolve_device

BYTES_A_PARAMETER = 16  # a checkpoint holds float32 weights, their average and two moments
SPARE = 64 * 2**20  # the battery, samples, metrics and the report


def check(config: RunConfig, out: Path) -> Iterator[tuple[str, bool, str]]:
    """(what, whether it is there, what was found or how to mend it), one after the other; none stops the rest."""
    looks: dict[str, Callable[[], str]] = {
        "packages": _packages,
        "device": lambda: _device(config),
        "data": lambda: _data(config),
        "output": lambda: _writable(out),
        "cache": lambda: _writable(cache_dir()),
        "disk": lambda: _disk(config, out),
    }
    for name, look in looks.items():
        try:
            yield name, True, look()
        except (ValueError, OSError) as error:
            yield name, False, str(error)


def _packages() -> str:
    """Versions of what irdm depends on."""
    try:
        required = [r for r in metadata.requires("irdm") or [] if "extra ==" not in r]
    except metadata.PackageNotFoundError:
        raise ValueError("irdm itself is not installed. Install it: pip install -c constraints.txt .") from None
    names = [match[0] for r in required if (match := re.match(r"[\w.-]+", r))]
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"not installed: {', '.join(missing)}. Install them: pip install -c constraints.txt .")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _device(config: RunConfig) -> str:
    device = resolve_device(config.device)
    if device.startswith("cuda"):
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"


def _data(config: RunConfig) -> str:
    dataset = config.data.build()
    if config.rollout < dataset.num_classes:
        raise ValueError(
            f"the rollout is {config.rollout} but there are {dataset.num_classes} classes; raise --rollout."
        )
    sizes = f"{len(dataset.train)} train, {len(dataset.val)} val, {len(dataset.test)} test"
    return f"{dataset.name}: {sizes}, {dataset.num_classes} classes, {'x'.join(map(str, dataset.image_shape))}"


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _writable(path: Path) -> str:
    with tempfile.TemporaryFile(dir=_existing(path)):
        return f"{path} can be written"


def _disk(config: RunConfig, out: Path) -> str:
    dataset = config.data.build()
    network = config.generator.build(dataset.image_shape, dataset.num_classes)
    parameters = sum(p.numel() for p in network.parameters())
    needed = SPARE + (config.keep_checkpoints + 1) * BYTES_A_PARAMETER * parameters
    free = shutil.disk_usage(_existing(out)).free
    text = f"{free / 2**30:.1f} GiB free, about {needed / 2**30:.1f} GiB needed for {parameters / 1e6:.2f}M parameters"
    if free < needed:
        raise ValueError(f"{text}; free some, choose another --out, or lower --keep_checkpoints.")
    return text
