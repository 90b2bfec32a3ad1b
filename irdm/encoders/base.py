"""What every encoder is: frozen, named, and differentiable in the images. A battery groups them.

Letters: n rows, c channels, h height, w width, d feature numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from irdm.files import hash_tensors


class Encoder(nn.Module):
    """A frozen feature extractor around `network`, which maps images [n, c, h, w] in [0, 1] to features [n, dim].

    It owns resizing, normalisation and pooling. Features are never normalised. Gradients flow to the images and to
    nothing else; it always stays in evaluation mode.
    """

    def __init__(self, name: str, dim: int, network: nn.Module):
        super().__init__()
        self.name, self.dim, self.network = name, dim, network
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        """Frozen: `mode` is ignored."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of images; raises ValueError naming the encoder when it turns finite images into NaN or infinity."""
        features = self.network(images)
        assert features.shape == (len(images), self.dim), f"{self.name}: {tuple(features.shape)}, dim {self.dim}"
        # Images that are not finite already are the generator's failure, and the trainer's to handle.
        if not features.isfinite().all() and images.isfinite().all():
            bad = int((~features.isfinite()).any(1).sum())
            raise ValueError(
                f"Encoder '{self.name}' returned NaN or infinity for {bad} of {len(images)} finite images. "
                "Its weights or its normalisation are broken: refit it, or take it out of the battery."
            )
        return features


class Visiting(nn.Module):
    """A frozen network whose numbers stay in main memory; each call brings them to where its input is.

    Moving the module moves nothing. What a graph needs of the numbers stays there until its backward pass.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        if torch.cuda.is_available():
            for tensor in self._numbers().values():
                tensor.data = tensor.data.pin_memory()

    def _numbers(self) -> dict[str, Tensor]:
        return dict(chain(self.network.named_parameters(), self.network.named_buffers()))

    def _apply(self, fn: Any, recurse: bool = True) -> Visiting:
        return self

    def forward(self, x: Tensor) -> Tensor:
        """What the network makes of x, to the bit."""
        there = {name: tensor.to(x.device, non_blocking=True) for name, tensor in self._numbers().items()}
        return torch.func.functional_call(self.network, there, (x,))


class Battery(nn.Module):
    """Encoders by name, divided into those that train the generator and those that only judge it."""

    def __init__(self, encoders: Mapping[str, Encoder], held_in: Sequence[str], held_out: Sequence[str]):
        """Raises ValueError when there is no encoder, or one that is not on exactly one side."""
        super().__init__()
        self.held_in, self.held_out = tuple(held_in), tuple(held_out)
        wanted = self.held_in + self.held_out
        if sorted(wanted) != sorted(encoders) or not wanted:
            raise ValueError(
                f"The battery has the encoders {sorted(encoders)}, but held_in and held_out name {sorted(wanted)}. "
                "There must be at least one, and each belongs to exactly one of the two."
            )
        self.encoders: dict[str, Encoder] = nn.ModuleDict({name: encoders[name] for name in wanted})  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Encoder:
        return self.encoders[name]

    def only(self, names: Sequence[str] | None) -> tuple[Battery, tuple[str, ...]]:
        """The battery of some of the encoders (None: of all), and the names of the others.

        Raises ValueError for names that it does not have.
        """
        there = self.held_in + self.held_out
        if unknown := [name for name in names or () if name not in there]:
            raise ValueError(f"There is no encoder {', '.join(unknown)} here; choose from {', '.join(there)}.")
        kept = [name for name in there if names is None or name in names]
        sides = ([name for name in side if name in kept] for side in (self.held_in, self.held_out))
        return Battery({name: self[name] for name in kept}, *sides), tuple(n for n in there if n not in kept)


_PLUMBING = frozenset(vars(nn.Module()))  # attributes that every module has


def encoder_identity(encoder: nn.Module, weights: Path | None = None) -> str:
    """sha256 of what decides an encoder's features: features stored under it may be read again.

    Of a pretrained encoder of the panel, the hashes of its files (in the folder `weights`) and its row of the table.
    Of any other, its structure as printed, and for each of its modules the name of the class, the attributes that are
    numbers, texts, functions, arrays or containers of these, and every parameter and buffer. Code is not read: rename
    a class whose `forward` now computes something else.
    """
    from irdm.encoders.families import PanelNetwork  # which stand on this file
    from irdm.encoders.panel import fingerprint

    network = getattr(encoder, "network", None)
    if isinstance(network, PanelNetwork):
        return fingerprint(network.entry, weights)
    tensors = dict(
        chain(encoder.named_parameters(remove_duplicate=False), encoder.named_buffers(remove_duplicate=False))
    )
    structure: list[Any] = [re.sub(r" at 0x[0-9a-f]+", "", repr(encoder))]
    for path, module in encoder.named_modules(remove_duplicate=False):
        own = {name: value for name, value in vars(module).items() if name not in _PLUMBING}
        for name, value in own.items():
            if isinstance(value, np.ndarray | Tensor):
                tensors[f"{path}.{name} (attribute)"] = torch.as_tensor(value)
        structure.append([path, type(module).__qualname__, _plain(own)])
    return hash_tensors(tensors, json.dumps(structure, sort_keys=True))


def _plain(value: Any) -> Any:
    """An attribute as JSON; what has no plain content is its type's name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {f"{key}": _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(item)) for item in value)
    if isinstance(value, partial):
        return ["partial", _plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, torch.dtype):
        return f"{value}"
    return getattr(value, "__qualname__", None) or type(value).__qualname__
