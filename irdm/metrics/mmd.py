"""MMD ratio: squared MMD of a Gaussian kernel by random Fourier features (Rahimi and Recht, 2007; MMDr14).

Letters: n rows, d features, q random features, b draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from irdm.metrics.base import EvaluationConfig, Pools
from irdm.metrics.ratio import ratio
from irdm.metrics.score import Score
from irdm.metrics.tables import Real, Table
from irdm.ops.embedding import median_distance
from irdm.ops.rows import Rows, row_blocks
from irdm.ops.sampling import generator_for, sample_indices

BANDWIDTH_ROWS = 10_000
BLOCK = 2048


@dataclass(frozen=True)
class FourierTarget:
    """The mean embedding of one real sample: the mean of sqrt(2) cos(x W + b), less the factor 1/sqrt(q).

    W ~ N(0, 1/sigma^2), b ~ U[0, 2 pi), drawn on the CPU from `seed`; sigma is the median distance between real rows
    (10,000 of them at most, seeded).
    """

    center: Float[Tensor, " d"]
    frequencies: Float[Tensor, "d q"]
    phases: Float[Tensor, " q"]
    embedding: Float64[Tensor, " q"]
    rows: int
    power: ClassVar[int] = 1

    @classmethod
    def of(cls, name: str, rows: Float[Tensor, "n d"], count: int, seed: int) -> FourierTarget:
        """Embed the real rows with `count` random features. Raises ValueError naming an encoder of constant rows."""
        center = rows.mean(0)
        chosen = sample_indices(len(rows), BANDWIDTH_ROWS, generator_for("metrics", "bandwidth", seed))
        sigma = median_distance(rows[chosen.to(rows.device)] - center)
        if not sigma > 0:
            raise ValueError(
                f"Encoder '{name}': the median distance between real rows is 0; its features are constant."
            )
        generator = torch.Generator().manual_seed(seed)
        frequencies = (torch.randn(rows.shape[1], count, generator=generator) / sigma).to(rows)
        phases = (torch.rand(count, generator=generator) * (2 * math.pi)).to(rows)
        return cls(center, frequencies, phases, _embed(rows, center, frequencies, phases), len(rows))

    @property
    def count(self) -> int:
        """Rows of the real sample."""
        return self.rows

    def distance(self, rows: Float[Tensor, "n d"]) -> float:
        """Squared MMD (biased: the diagonal is in)."""
        return (_embed(rows, self.center, self.frequencies, self.phases) - self.embedding).square().mean().item()

    def distances(self, table: Rows, draws: Sequence[Int64[Tensor, " _"]]) -> Float64[Tensor, " b"]:
        """The same of many draws from one table, which is embedded once for all."""
        shares = torch.zeros(len(draws), len(table))
        for share, draw in zip(shares, draws, strict=True):
            share[draw] = 1 / len(draw)
        means, start = torch.zeros(len(draws), len(self.embedding)).to(self.embedding), 0
        for block in row_blocks(table, BLOCK):
            waves = _waves(block, self.center, self.frequencies, self.phases)
            means += shares[:, start : start + len(block)].to(waves) @ waves
            start += len(block)
        return (means * math.sqrt(2) - self.embedding).square().mean(1).cpu()


def _embed(
    rows: Float[Tensor, "n d"],
    center: Float[Tensor, " d"],
    frequencies: Float[Tensor, "d q"],
    phases: Float[Tensor, " q"],
) -> Float64[Tensor, " q"]:
    """The mean of sqrt(2) cos(x W + b)."""
    sums = [_waves(block, center, frequencies, phases).sum(0, dtype=torch.float64) for block in rows.split(BLOCK)]
    return torch.stack(sums).sum(0) * (math.sqrt(2) / len(rows))


def _waves(
    rows: Float[Tensor, "n d"],
    center: Float[Tensor, " d"],
    frequencies: Float[Tensor, "d q"],
    phases: Float[Tensor, " q"],
) -> Float[Tensor, "n q"]:
    """cos(x W + b)."""
    return torch.addmm(phases, rows.to(center) - center, frequencies).cos_()


def mmd_ratio(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """MMD^2(gen, train) / MMD^2(val, train), arithmetic mean over encoders."""
    pools = Pools.of(generated, real)
    rows = pools.train.sample(config.rows, "target", config.seed)

    def targets(name: str) -> FourierTarget:
        return FourierTarget.of(name, real.train.features[name][rows], config.rff_features, config.rff_seed)

    says = "Squared MMD to train, over that of fresh real images: 1 is as good as real, lower is better."
    score = ratio(
        "MMDr", says, targets, pools.generated, pools.val, real.held_out, config, most=len(rows), law=pools.law
    )
    return {"mmd_ratio": score}
