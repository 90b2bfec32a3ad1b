"""Building a reference: real images -> encoders -> two stores -> banks, distances and floors, by several processes.

What a reference holds is described in `irdm.judging.folder`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import PIL
import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor

from irdm.checkpoint import claimed, resumable, write_atomic
from irdm.config import Config
from irdm.data.decode import PREPROCESSING
from irdm.data.sources import ImageSource
from irdm.distances import AnyDistance, NystromMMDConfig
from irdm.distributed import Ranks
from irdm.encoders import LocalBatteryConfig
from irdm.judging import BankConfig, ReferenceFolder
from irdm.judging.bank import EncoderBank, OnDevice
from irdm.judging.evaluate import MIN_IMAGES, sheet
from irdm.judging.folder import (
    ENCODERS,
    FORMAT,
    MANIFEST,
    SAMPLES,
    address_of,
    refuse_foreign,
    write_manifest,
    write_plan,
)
from irdm.judging.judge import encoder_identity
from irdm.reference import fit_distance
from irdm.references.opened import ReferenceSet, open_reference
from irdm.references.panels import PANEL_SIZE, Panel
from irdm.store import FeatureStore, build_store


class ReferenceConfig(Config):
    """What decides a reference beside its images and its encoders."""

    size: int = Field(default=PANEL_SIZE, ge=8)
    """Side in pixels of the centre crop that every encoder is shown."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order of the rows, the fits and every draw."""
    rollout: int = Field(default=5120, ge=2)
    """Batch size of training that the floors are for."""
    distance: AnyDistance = NystromMMDConfig()
    """What training minimises; fitted to the marginal distribution of each encoder's features."""
    judging: BankConfig = BankConfig()
    """What evaluation keeps."""


def build_references(
    name: str,
    train: ImageSource,
    val: ImageSource,
    panel: Panel,
    path: Path,
    config: ReferenceConfig | None = None,
    *,
    micro_batch: int = 64,
    device: str = "cpu",
    ranks: Ranks | None = None,
    command: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> ReferenceSet:
    """Build the reference at `path`, or what is missing of it, and open it.

    Interrupted or killed, the same call goes on at the next missing file. Under torchrun every rank calls this: rows of
    the stores are divided first, then the encoders, one rank an encoder. Nothing is summed across ranks, so the files
    are the same for any number of them. Memory: the table rows of one encoder and what its distance samples.

    Args:
        name: what it is called in results.
        train: the images that a generator should learn.
        val: images of the same kind that are not in train: the floors, controls and fresh draws.
        panel: the encoders, from `local_battery`, `panel_battery` or of your own.
        path: its directory, which all ranks share.
        config: None is the published protocol.
        micro_batch: images decoded and embedded at once; changes memory, not results beyond rounding.
        device: where to compute.
        ranks: this process among its peers.
        command: what the user typed, for messages and `irdm reference show`.
        progress: receives a line of text now and then.

    Raises:
        ValueError: for fewer than 50 images, the same images twice, an image that cannot be used (each is named), a
            directory that holds something else, or one that another process is building.
        OSError: when the disk is full or cannot be written; what is finished stays.
    """
    config, ranks, path, say = (
        config or ReferenceConfig(),
        ranks or Ranks(),
        Path(path),
        progress or (lambda text: None),
    )
    for what, source in (("train", train), ("val", val)):
        if len(source) < MIN_IMAGES:
            raise ValueError(
                f"--{what} {source.path} holds {len(source)} image(s); a reference needs at least {MIN_IMAGES} of each"
                ", and thousands to mean something."
            )
    say(f"reading {len(train)} train and {len(val)} val images for their fingerprints")
    if train.fingerprint == val.fingerprint:
        raise ValueError("train and val hold the same images; val must be real images that are not in train.")
    encoders = dict(panel.battery.to(device).encoders.items())
    plan = _plan(train, val, panel, encoders, config)
    if ranks.any(ranks.is_main and _finished(path, plan), device):
        say(f"{path} is there already")
        return open_reference(path)
    if ranks.is_main:
        refuse_foreign(path)
    with claimed(path) if ranks.is_main else nullcontext():
        if ranks.is_main:
            write_plan(path, plan)
            (path / MANIFEST).unlink(missing_ok=True)
        ranks.barrier()  # the directory is ours
        stores = [
            build_store(
                source,
                encoders,
                path / split,
                size=config.size,
                seed=config.seed,
                micro_batch=micro_batch,
                device=device,
                ranks=ranks,
                progress=lambda text, split=split: say(f"{split}: {text}"),
                identity=plan["encoders"],
            )
            for split, source in (("train", train), ("val", val))
        ]
        with resumable(path, "files"):
            for number, encoder in enumerate(encoders):
                if number % ranks.size == ranks.rank:
                    _fit(encoder, path, stores[0], stores[1], config, device, say)
            if ranks.is_main:
                _finish(name, path, plan, panel, stores, val, config, command)
        while not (path / MANIFEST).exists():  # no barrier: it would time out while a peer finishes an encoder
            time.sleep(0.1)
    return open_reference(path)


def _plan(
    train: ImageSource, val: ImageSource, panel: Panel, encoders: Mapping[str, torch.nn.Module], config: ReferenceConfig
) -> dict[str, Any]:
    """Everything that decides the content of a reference, as plain JSON."""
    sources = {
        split: {"count": len(source), "fingerprint": source.fingerprint}
        for split, source in (("train", train), ("val", val))
    }
    return {
        "format": FORMAT,
        "panel": panel.name,
        "encoders": {name: encoder_identity(encoder, panel.weights) for name, encoder in encoders.items()},
        "held_out": list(panel.battery.held_out),
        "battery": panel.config.model_dump(mode="json") if panel.config else {"kind": "own"},
        **sources,
        "classes": list(train.class_names),
        "preprocessing": {"crop": PREPROCESSING, "size": config.size},
        "seed": config.seed,
        "training": {"distance": config.distance.model_dump(mode="json"), "rollout": config.rollout},
        "judging": config.judging.model_dump(mode="json"),
    }


def _finished(path: Path, plan: Mapping[str, Any]) -> bool:
    """Whether the reference is there, of this plan, and nothing of it is missing or cut short."""
    if not (path / MANIFEST).exists():
        return False
    try:
        folder = ReferenceFolder(path)
        return folder.address == address_of(plan) and all(len(FeatureStore(path / split)) for split in ("train", "val"))
    except ValueError:
        return False  # it is repaired


def _fit(
    name: str,
    path: Path,
    train: FeatureStore,
    val: FeatureStore,
    config: ReferenceConfig,
    device: str,
    say: Callable[[str], None],
) -> None:
    """The two files of one encoder, unless they are there."""
    bank, training = path / "judging" / f"{name}.safetensors", path / "training" / f"{name}.safetensors"
    if not bank.exists():
        say(f"{name}: what evaluation compares with")
        real, fresh = (OnDevice(store[name], device) for store in (train, val))
        write_atomic(bank, EncoderBank.build(name, real, fresh, config.judging, config.seed).to_bytes())
    if not training.exists():
        say(f"{name}: the distance and its floor")
        labels = (train.labels, val.labels)
        classes = max(int(column.max()) for column in labels) + 1
        options: dict[str, Any] = {"joint": False, "rollout": config.rollout, "seed": config.seed, "device": device}
        distance, floor = fit_distance(config.distance, train[name], val[name], labels, classes, **options)
        state = {key: value.cpu().contiguous() for key, value in distance.state_dict().items()}
        write_atomic(training, save(state, {"floor": repr(floor)}))


def _finish(
    name: str,
    path: Path,
    plan: Mapping[str, Any],
    panel: Panel,
    stores: list[FeatureStore],
    val: ImageSource,
    config: ReferenceConfig,
    command: str | None,
) -> None:
    """Wait for every rank's files, write those that are nobody's, then say that the reference is whole."""
    fitted = [f"{part}/{encoder}.safetensors" for encoder in plan["encoders"] for part in ("judging", "training")]
    while not all((path / file).exists() for file in fitted):
        time.sleep(0.1)
    shared: dict[str, dict[str, Tensor]] = {SAMPLES: {"images": sheet(val, config.size, config.seed)}}
    if isinstance(panel.config, LocalBatteryConfig):
        shared[ENCODERS] = {key: value.cpu().contiguous() for key, value in panel.battery.state_dict().items()}
    for file, tensors in shared.items():
        write_atomic(path / file, save(tensors))
    write_manifest(
        path,
        plan,
        name,
        [*fitted, *shared],
        stores={split: store.address for split, store in zip(("train", "val"), stores, strict=True)},
        command=command,
        versions={"torch": str(torch.__version__), "pillow": PIL.__version__},
    )
