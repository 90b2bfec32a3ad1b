"""What evaluation keeps of the real images under one encoder: ratio targets, moments, and tables of bounded size.

Letters: n rows, d features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from pydantic import Field
from safetensors.torch import save
from torch import Tensor

from irdm.config import Config
from irdm.metrics.base import EvaluationConfig
from irdm.metrics.frechet_distance import table_moments
from irdm.metrics.ratio_bank import Kind, RatioBank, RatioProtocol
from irdm.ops.gaussian import Moments
from irdm.ops.rows import Rows

KINDS: tuple[Kind, ...] = ("sw_ratio", "mmd_ratio")


class BankConfig(Config):
    """How large the real side of an evaluation is. The defaults are the published protocol's (arXiv 2607.02375)."""

    rows: int = Field(default=16384, ge=8)
    """Rows of a full draw of the ratios; fewer where there are fewer real rows."""
    directions: int = Field(default=1024, ge=1)
    """Unit directions of SW_r14."""
    rff_features: int = Field(default=4096, ge=1)
    """Random Fourier features of MMDr14."""
    rff_seed: int = Field(default=99999, ge=0)
    """Seed of the Fourier bank."""
    resamples: int = Field(default=64, ge=2)
    """Fresh real draws behind the intervals of the ratios."""
    table_rows: int = Field(default=50_000, ge=64)
    """At most this many rows of train and of val are kept, for memorisation, neighbours and controls."""
    manifold_rows: int = Field(default=10_000, ge=64)
    """At most this many real and generated rows for precision, recall, density and coverage."""
    neighbours: int = Field(default=5, ge=1)
    """The neighbour whose distance is a ball's radius in precision, recall, density and coverage."""

    def ratios(self, seed: int) -> EvaluationConfig:
        """The settings that a ratio bank reads."""
        shared = ("rows", "directions", "rff_features", "rff_seed", "resamples")
        return EvaluationConfig(**{name: getattr(self, name) for name in shared}, seed=seed)


class OnDevice:
    """Rows that are brought to a device as they are asked for, so that what is done with them is done there."""

    def __init__(self, rows: Rows, device: str):
        self._rows, self._device = rows, device
        self.shape = rows.shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        return self._rows[index].to(self._device)


@dataclass(frozen=True)
class EncoderBank:
    """The real side under one encoder."""

    ratios: Mapping[str, RatioBank]
    """By kind: sw_ratio, mmd_ratio."""
    moments: Moments
    """Of all train rows."""
    train: Float[Tensor, "n d"]
    """Random train rows."""
    val: Float[Tensor, "v d"]
    """Random rows of fresh real images."""

    @classmethod
    def build(cls, name: str, train: Rows, val: Rows, config: BankConfig, seed: int) -> EncoderBank:
        """Measure the real side. The tables keep the first rows: those of a store are in random order.

        Raises ValueError naming the encoder for features that are not finite or constant, or too few rows.
        """
        ratios = {k: RatioBank.build(k, {name: train}, {name: val}, (), config.ratios(seed)) for k in KINDS}
        tables = (rows[0 : min(len(rows), config.table_rows)].contiguous() for rows in (train, val))
        return cls(ratios, table_moments(name, train), *tables)

    def to_bytes(self) -> bytes:
        """A safetensors file; `load` reads its tensors and notes."""
        tensors = {f"moments/{key}": value for key, value in self.moments.state_dict().items()}
        for kind, bank in self.ratios.items():
            tensors |= {f"{kind}/{key.rpartition('.')[2]}": value for key, value in bank.state_dict().items()}
        tensors = {key: value.cpu().contiguous() for key, value in tensors.items()}
        tensors |= {"table/train": self.train.cpu(), "table/val": self.val.cpu()}
        protocols = {kind: bank.protocol.model_dump(mode="json") for kind, bank in self.ratios.items()}
        return save(tensors, {"protocols": json.dumps(protocols)})  # one note: several come in a random order

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> EncoderBank:
        """The bank that `to_bytes` wrote."""
        ratios, protocols = {}, json.loads(notes["protocols"])
        for kind in KINDS:
            protocol = RatioProtocol.model_validate(protocols[kind])
            own = {f"{protocol.encoders[0]}.{key}": value for key, value in _part(tensors, kind).items()}
            ratios[kind] = RatioBank.load(protocol, own)
        return cls(ratios, Moments.load(_part(tensors, "moments")), tensors["table/train"], tensors["table/val"])


def joined(kind: Kind, banks: Mapping[str, EncoderBank], held_out: Sequence[str]) -> RatioBank:
    """The ratio bank of the whole panel from those of its encoders."""
    parts = {name: bank.ratios[kind] for name, bank in banks.items()}
    names = tuple(parts)
    wide = {"encoders": names, "held_out": tuple(name for name in names if name in held_out)}
    protocol = parts[names[0]].protocol.model_copy(update=wide)
    return RatioBank(
        protocol,
        {name: part.targets[name] for name, part in parts.items()},
        {name: part.fresh[name] for name, part in parts.items()},
    )


def _part(tensors: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{head}/"): value for key, value in tensors.items() if key.startswith(f"{head}/")}
