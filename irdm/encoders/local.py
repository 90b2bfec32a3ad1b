"""The local battery: encoders fitted on your own images in seconds, by different principles, so they fail differently.

For a domain without a good pretrained encoder. Fitted on the train split only, seeded, cached by content.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float32, Int64
from pydantic import Field, field_validator
from torch import Tensor, nn

from irdm.checkpoint import restore
from irdm.conditions import draw
from irdm.config import Config
from irdm.data.base import Dataset, Shape, Split
from irdm.encoders.base import Battery, Encoder
from irdm.encoders.pretexts import PRETEXTS, PatchFeatures, Pixels, Standardise, WhitePCA, shape_of
from irdm.files import clear_partial, hash_of, hash_tensors, misfits, read_tensors, write_tensors

Images = Float32[Tensor, "n c h w"]
Say = Callable[[str], None]

KINDS = (*PRETEXTS, "patches", "pixels", "pca")
CODE_VERSION = 2  # Part of the cache key: raise it when a fitted encoder's numbers change.
MIN_SIDE = 4  # pixels: smaller images have no patches and no blocks
SAY_EVERY = 5.0  # seconds between lines while one encoder is fitted
DAY = 86_400.0  # seconds after which nobody is still writing a file of the cache


class LocalBatteryConfig(Config):
    """Small encoders fitted on the train split: some train the generator, the held-out ones only judge it."""

    kind: Literal["local"] = "local"
    """Name of this kind of battery."""
    held_in: tuple[str, ...] = ("supervised", "contrastive", "masked", "denoising", "patches", "pixels")
    """Encoders that train the generator."""
    held_out: tuple[str, ...] = ("rotation", "supervised_mlp", "pca")
    """Encoders that only judge it."""
    dim: int = Field(default=64, ge=4, le=2**16)
    """Features of each fitted encoder."""
    width: int = Field(default=16, ge=1, le=2**14)
    """Channels of the first convolution; hidden layers of perceptrons are eight times as wide."""
    images: int = Field(default=20_000, ge=2, le=2**31)
    """At most this many training images are fitted on, the classes in proportion."""
    steps: int = Field(default=300, ge=1, le=2**31)
    """Optimizer steps of each fitted encoder."""
    batch: int = Field(default=256, ge=2, le=2**24)
    """Images a step."""
    lr: float = Field(default=3e-3, gt=0, le=1e3)
    """Peak learning rate (one cycle)."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random in the fit."""

    @field_validator("held_in", "held_out")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(names) - set(KINDS)):
            raise ValueError(f"There is no local encoder {unknown}; choose from {list(KINDS)}.")
        return names

    def fit(self, dataset: Dataset, *, cache_dir: Path | None = None, progress: Say | None = None) -> Battery:
        """The battery for these images, read from `cache_dir` when the same data, config and code made it before.

        Only `dataset.train` is read. Images of fewer than two classes cannot teach the supervised encoders anything:
        these are left out then. `progress` receives lines of text: a damaged cache file is named and fitted again.

        Raises ValueError for images smaller than 4 x 4, OSError when the cache cannot be written.
        """
        say, train = progress or (lambda line: None), dataset.train
        if min(train.image_shape[1:]) < MIN_SIDE:
            raise ValueError(
                f"{dataset.name} has images of {train.image_shape[1]} x {train.image_shape[2]}; local encoders need at "
                f"least {MIN_SIDE} x {MIN_SIDE} pixels. For points, use --battery.kind identity."
            )
        strata = train.conditions.strata
        taught = strata is not None and len(strata.unique()) > 1
        key = hash_of([train.fingerprint, self.identity(), CODE_VERSION])
        path = cache_dir / f"local-battery-{key[:24]}.safetensors" if cache_dir else None
        if path and path.exists() and (battery := self._read(path, key, train.image_shape, taught, say)):
            return battery
        images, labels = self._sample(train)
        encoders = {}
        for name in self._names(taught):
            began = time.monotonic()
            encoders[name] = _fit(name, self, images, labels, say)
            say(f"fitted the encoder '{name}' on {len(images)} images in {time.monotonic() - began:.1f} s")
        battery = self._battery(encoders)
        if path:
            clear_partial(path.parent, older=DAY)
            state = battery.state_dict()
            write_tensors(path, state, {"sha256": hash_tensors(state, key)})
        return battery

    def restore(self, image_shape: Shape, state: Mapping[str, Tensor]) -> Battery:
        """The battery whose `state_dict` is given, which was fitted to images of this shape.

        Raises ValueError when the state is that of another battery.
        """
        taught = any(key.startswith("encoders.supervised") for key in state)
        battery = self._blank(image_shape, taught)
        restore(battery.state_dict(), state, "The file")
        return battery

    def _names(self, taught: bool) -> tuple[str, ...]:
        """The encoders that there are, with or without classes to be taught by."""
        return tuple(name for name in self.held_in + self.held_out if taught or not name.startswith("supervised"))

    def _battery(self, encoders: Mapping[str, Encoder]) -> Battery:
        return Battery(encoders, *(tuple(n for n in side if n in encoders) for side in (self.held_in, self.held_out)))

    def _blank(self, image_shape: Shape, taught: bool) -> Battery:
        """The battery of this configuration with weights that are replaced next; the noise decides nothing that is."""
        noise = torch.rand(64, *image_shape, generator=torch.Generator().manual_seed(0))
        return self._battery({name: _fit(name, self, noise, None, None) for name in self._names(taught)})

    def _sample(self, train: Split) -> tuple[Images, Int64[Tensor, " n"]]:
        """The images that are fitted on, and the class of each (0 where there are none)."""
        rows = torch.arange(len(train))
        if len(train) > self.images:
            rows = draw(train.conditions, self.images, "local battery", self.seed).sort().values
        strata = train.conditions.strata
        return train.read(rows), torch.zeros_like(rows) if strata is None else strata.cpu()[rows]

    def _read(self, path: Path, key: str, image_shape: Shape, taught: bool, say: Say) -> Battery | None:
        """The battery in a file of the cache, or None, said, when it is damaged."""
        battery = self._blank(image_shape, taught)
        try:
            state, notes = read_tensors(path, "")
            if odd := misfits(state, battery.state_dict()):
                raise ValueError(f"it holds other tensors, such as {odd[0]}")
            if notes.get("sha256") != hash_tensors(state, key):
                raise ValueError("its checksum does not match its content")
        except ValueError as error:
            say(f"the cached battery {path} is damaged ({f'{error}'.strip()}); fitting it again")
            return None
        battery.load_state_dict(state)
        say(f"read {len(battery.encoders)} encoders from {path}")
        return battery


def _fit(
    name: str, config: LocalBatteryConfig, images: Images, labels: Int64[Tensor, " n"] | None, say: Say | None
) -> Encoder:
    """One encoder; without labels only its shape, for weights that are loaded next. Leaves the global seed alone."""
    with torch.random.fork_rng(devices=[]):
        # Independent of the other encoders.
        torch.manual_seed((config.seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63)
        shape = shape_of(images)
        if name == "pixels":
            network = Pixels(shape)
        elif name == "patches":
            network = PatchFeatures(images, config.dim // 4)
        elif name == "pca":
            network = WhitePCA(images, config.dim // 2)
        else:
            pretext = PRETEXTS[name]
            trunk = pretext.trunk(shape, config.width, config.dim)
            network = nn.Sequential(Standardise(images), trunk)
            if labels is not None:
                outputs = pretext.outputs(shape, int(labels.max()) + 1)
                head = nn.Sequential(nn.GELU(), nn.Linear(config.dim, outputs))
                with torch.enable_grad():
                    _train(name, network, head, config, images, labels, say or (lambda line: None))
        with torch.no_grad():
            dim = network(images[:1]).shape[1]
    return Encoder(name, dim, network)


def _train(
    name: str,
    network: nn.Module,
    head: nn.Module,
    config: LocalBatteryConfig,
    images: Images,
    labels: Int64[Tensor, " n"],
    say: Say,
) -> None:
    """AdamW over shuffled batches, one learning-rate cycle."""
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
    loss_of, began = PRETEXTS[name].loss, time.monotonic()
    said = began
    for step in range(config.steps):
        rows = torch.randperm(len(images))[: config.batch]
        optimizer.zero_grad()
        loss_of(network, head, images[rows], labels[rows]).backward()
        optimizer.step()
        schedule.step()
        if (now := time.monotonic()) - said > SAY_EVERY:
            said, left = now, (now - began) / (step + 1) * (config.steps - step - 1)
            say(f"fitting the encoder '{name}': step {step + 1} of {config.steps}, {left:.0f} s left")
