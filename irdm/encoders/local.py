"""The local battery: encoders fitted on your own images in seconds, by different principles, so they fail differently.

For a domain without a good pretrained encoder. Fitted on the train split only, seeded, cached by content.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from irdm.checkpoint import write_atomic
from irdm.config import Config
from irdm.data.base import Dataset, Split
from irdm.encoders.base import Battery, Encoder
from irdm.encoders.pretexts import PRETEXTS, PatchFeatures, Pixels, Standardise, WhitePCA, shape_of

KINDS = (*PRETEXTS, "patches", "pixels", "pca")
CODE_VERSION = 1  # Part of the cache key: raise it when a fitted encoder's numbers change.


class LocalBatteryConfig(Config):
    """Small encoders fitted on the train split: some train the generator, the held-out ones only judge it."""

    kind: Literal["local"] = "local"
    """Name of this kind of battery."""
    held_in: tuple[str, ...] = ("supervised", "contrastive", "masked", "denoising", "patches", "pixels")
    """Encoders that train the generator."""
    held_out: tuple[str, ...] = ("rotation", "supervised_mlp", "pca")
    """Encoders that only judge it."""
    dim: int = Field(default=64, ge=4)
    """Features of each fitted encoder."""
    width: int = Field(default=16, ge=1)
    """Channels of the first convolution; hidden layers of perceptrons are eight times as wide."""
    steps: int = Field(default=300, ge=1)
    """Optimizer steps of each fitted encoder."""
    batch: int = Field(default=256, ge=2)
    """Images a step."""
    lr: float = Field(default=3e-3, gt=0)
    """Peak learning rate (one cycle)."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random in the fit."""

    @field_validator("held_in", "held_out")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(names) - set(KINDS)):
            raise ValueError(f"There is no local encoder {unknown}; choose from {list(KINDS)}.")
        return names

    def fit(
        self,
        dataset: Dataset,
        *,
        cache_dir: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Battery:
        """The battery for these images, read from `cache_dir` when the same data, config and code made it before.

        `progress` receives one line of text an encoder. A damaged cache file is named there and fitted again.
        """
        say = progress or (lambda line: None)
        fingerprint = json.dumps([dataset.fingerprint, self.model_dump(), CODE_VERSION], sort_keys=True)
        key = hashlib.sha256(fingerprint.encode()).hexdigest()[:24]
        path = cache_dir / f"local-battery-{key}.safetensors" if cache_dir else None
        state = _read(path, say) if path else None
        encoders = {}
        for name in self.held_in + self.held_out:
            encoders[name] = _fit(name, self, dataset.train, dataset.num_classes, fitted=state is not None)
            if state is None:
                say(f"fitted the encoder '{name}' on {len(dataset.train)} images")
        battery = Battery(encoders, self.held_in, self.held_out)
        if state is not None:
            battery.load_state_dict(state)
            say(f"read {len(encoders)} encoders from {path}")
        elif path:
            _write(path, battery.state_dict())
        return battery

    def restore(self, shape: tuple[int, int, int], num_classes: int, state: Mapping[str, Tensor]) -> Battery:
        """The battery whose `state_dict` is given, which was fitted to images [n, *shape] of `num_classes` classes.

        Raises ValueError when the state is that of another battery.
        """
        noise = torch.rand(64, *shape, generator=torch.Generator().manual_seed(0))  # only the shapes of layers are used
        blank = Split(noise, torch.zeros(len(noise), dtype=torch.int64))
        names = self.held_in + self.held_out
        encoders = {name: _fit(name, self, blank, num_classes, fitted=True) for name in names}
        battery = Battery(encoders, self.held_in, self.held_out)
        try:
            battery.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"The weights are not those of this local battery: {error}") from error
        return battery


def _fit(name: str, config: LocalBatteryConfig, split: Split, num_classes: int, *, fitted: bool) -> Encoder:
    """One encoder; with `fitted` only its shape, for weights that are loaded next. Leaves the global seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed * 1_000_003 + zlib.crc32(name.encode()))  # independent of the other encoders
        shape = shape_of(split.images)
        if name == "pixels":
            network = Pixels(shape)
        elif name == "patches":
            network = PatchFeatures(split.images, config.dim // 4)
        elif name == "pca":
            network = WhitePCA(split.images, config.dim // 2)
        else:
            pretext = PRETEXTS[name]
            trunk = pretext.trunk(shape, config.width, config.dim)
            network = nn.Sequential(Standardise(split.images), trunk)
            if not fitted:
                head = nn.Linear(config.dim, pretext.outputs(shape, num_classes))
                head = nn.Sequential(nn.GELU(), head)
                with torch.enable_grad():
                    _train(network, head, pretext.loss, config, split)
        with torch.no_grad():
            dim = network(split.images[:1]).shape[1]
    return Encoder(name, dim, network)


def _train(network: nn.Module, head: nn.Module, loss_of: Callable, config: LocalBatteryConfig, split: Split) -> None:
    """AdamW over shuffled batches, one learning-rate cycle."""
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
    for _ in range(config.steps):
        rows = torch.randperm(len(split))[: config.batch]
        optimizer.zero_grad()
        loss_of(network, head, split.images[rows], split.labels[rows]).backward()
        optimizer.step()
        schedule.step()


def _digest(state: dict[str, Tensor]) -> str:
    """sha256 over names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)} ".encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, say: Callable[[str], None]) -> dict[str, Tensor] | None:
    """The cached state, or None when there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        state = load_file(path)
        stored = bytes(state.pop("sha256").tolist()).hex()
        if stored == _digest(state):
            return state
        reason = "its checksum does not match its content"
    except (SafetensorError, KeyError, OSError) as error:
        reason = str(error)
    say(f"the cached battery {path} is damaged ({reason}); fitting it again")
    return None


def _write(path: Path, state: dict[str, Tensor]) -> None:
    checksum = torch.tensor(list(bytes.fromhex(_digest(state))), dtype=torch.uint8)
    write_atomic(path, save({name: value.contiguous() for name, value in (state | {"sha256": checksum}).items()}))
