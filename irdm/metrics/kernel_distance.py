"""Squared MMDs with the kernels of the literature: KID and KD-DINOv2, and CMMD. Both differ from `mmd_ratio`, which has
a kernel of its own and is a ratio.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)          x generated, y train

    KID     k = (x.y / d + 1)^3, pairs of a row with itself left out     (Binkowski et al., 2018; Stein et al., 2023)
    CMMD    1000 MMD^2, k = exp(-|x - y|^2 / 200), x and y of length 1, all pairs       (Jayasumana et al., 2024)

KID is usually reported as the mean over 100 random subsets of 1000 rows of either side. Here all rows are taken at
once: the value that the mean over ever more subsets tends to, without the luck of drawing them. Means are taken in
float64, over blocks of pairs: no n x m matrix is held. For images as good as real the distance is a degenerate
statistic, of which the jackknife counts a part twice; the sums by folds say how large it is (`irdm.metrics.intervals`).

Letters: n generated rows, m train rows, d features, f folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from irdm.metrics.base import BLOCK, EvaluationConfig, Pools
from irdm.metrics.intervals import folds, jackknife, score_of, tightened
from irdm.metrics.score import Score
from irdm.metrics.tables import Picked, Real, Table, published
from irdm.ops.rows import Rows, row_blocks, squared_distances

KERNEL_DISTANCES = {"inception": "KID", "dinov2_224": "KD-DINOv2"}
"""Encoders under which the cubic kernel's distance is reported, and what it is called there."""
CMMD = "clip_336"
"""The encoder of CMMD: the projected embedding of CLIP ViT-L/14 at 336 pixels."""

Kernel = Callable[[Float64[Tensor, "n d"], Float64[Tensor, "m d"]], Float64[Tensor, "n m"]]


def kernel_distances(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """KID under Inception, KD-DINOv2 under DINOv2 at 224 pixels; under no other encoder, and no mean of the two.

    At most `manifold_rows` of a side, drawn at random. May be below 0, since the estimate is unbiased.
    """
    names = [name for name in generated.features if name in KERNEL_DISTANCES]
    if not names:
        return {}
    return {
        "kernel_distance": _score(
            "Kernel distance",
            "Squared MMD to train of the cubic polynomial kernel, unbiased (KID under Inception); lower is better.",
            {name: MMD(cubic, unbiased=True) for name in names},
            {name: {"name": published(KERNEL_DISTANCES[name], generated, real)} for name in names},
            (generated, real, config),
            most=config.manifold_rows,
            means=False,
        )
    }


def cmmd(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """CMMD, where the encoder `clip_336` is there: of all judged and all train rows that are kept."""
    if CMMD not in generated.features:
        return {}
    says = "1000 times the squared MMD to train of CLIP embeddings, of a Gaussian kernel of width 10; lower is better."
    mmd = MMD(gaussian, unbiased=False, normalised=True, scale=1000.0)
    most = max(len(generated), len(real.train))
    found = _score(published("CMMD", generated, real), says, {CMMD: mmd}, {}, (generated, real, config), most=most)
    return {"cmmd": found}


def cubic(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """(x.y / d + 1)^3."""
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def gaussian(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    """exp(-|x - y|^2 / (2 10^2))."""
    return squared_distances(x, y).div_(-200).exp_()


@dataclass(frozen=True)
class MMD:
    """A squared MMD: its kernel, whether pairs of a row with itself are left out, whether rows are made of length 1."""

    kernel: Kernel
    unbiased: bool
    normalised: bool = False
    scale: float = 1.0

    def within(self, rows: Rows, fold: Int64[Tensor, " n"]) -> Float64[Tensor, "f f"]:
        """Sums of the kernel over pairs of rows of one sample, by their folds."""
        count = int(fold.max()) + 1
        sums = torch.zeros(count, count, dtype=torch.float64)
        for at, x in self._blocks(rows):
            for where, y in self._blocks(rows, at.start):
                k = self.kernel(x, y)
                if self.unbiased and at == where:
                    k.fill_diagonal_(0)
                part = _members(fold[at], count).T @ (k @ _members(fold[where], count).to(k)).cpu()
                sums += part if at == where else part + part.T
        return sums

    def between(self, rows: Rows, fold: Int64[Tensor, " n"], others: Rows) -> Float64[Tensor, " f"]:
        """Sums of the kernel over pairs of a row and one of the others, by the row's fold."""
        count = int(fold.max()) + 1
        sums = torch.zeros(count, dtype=torch.float64)
        for at, x in self._blocks(rows):
            for _, y in self._blocks(others):
                sums.index_add_(0, fold[at], self.kernel(x, y).sum(1).cpu())
        return sums

    def replicates(self, rows: Rows, fold: Int64[Tensor, " n"], real: Rows, real_mean: Tensor) -> Float64[Tensor, " f"]:
        """Replicates of the distance of a sample to the real rows, whose mean kernel is given."""
        own, cross, sizes = self.within(rows, fold), self.between(rows, fold, real), torch.bincount(fold)
        found = jackknife(*self.distances(own, cross, sizes, real, real_mean))
        return tightened(found, self.scale**2 * quadratic(own, sizes))

    def mean(self, total: Tensor, rows: int) -> Tensor:
        """The mean of a sum over the pairs within a sample of so many rows."""
        return total / (rows * (rows - 1 if self.unbiased else rows))

    def distances(
        self,
        own: Float64[Tensor, "f f"],
        cross: Float64[Tensor, " f"],
        sizes: Int64[Tensor, " f"],
        real: Rows,
        real_mean: Tensor,
    ) -> tuple[float, Float64[Tensor, " f"]]:
        """The distance from the sums `within` and `between`; and its values without each fold."""
        n, m = int(sizes.sum()), len(real)
        value = self.mean(own.sum(), n) + real_mean - 2 * cross.sum() / (n * m)
        left = (n - sizes).double()
        own_left = own.sum() - own.sum(0) - own.sum(1) + own.diagonal()
        pairs = left * (left - 1 if self.unbiased else left)
        without = own_left / pairs + real_mean - 2 * (cross.sum() - cross) / (left * m)
        return self.scale * value.item(), self.scale * without

    def _blocks(self, rows: Rows, start: int = 0) -> Iterator[tuple[slice, Float64[Tensor, "k d"]]]:
        for block in row_blocks(Picked(rows, torch.arange(start, len(rows))) if start else rows, BLOCK):
            block = block.double()
            yield (
                slice(start, start + len(block)),
                torch.nn.functional.normalize(block, dim=1) if self.normalised else block,
            )
            start += len(block)


def quadratic(own: Float64[Tensor, "f f"], sizes: Int64[Tensor, " f"]) -> float:
    """Variance of the degenerate part of the mean of a kernel over pairs of rows, from its sums `within`.

    Means over pairs of rows of two folds are a mean, an effect of either fold, and a remainder, whose variance is that
    of the degenerate part times half of the number of folds squared.
    """
    count = len(sizes)
    if count < 4:
        return 0.0
    means = (own / torch.outer(sizes, sizes)).fill_diagonal_(0)
    total = means.sum()
    effect = (means.sum(1) - total / count) / (count - 2)
    remainder = (means - total / (count * (count - 1)) - effect[:, None] - effect).fill_diagonal_(0)
    return 2 * remainder.square().sum().item() / (count * (count - 3)) / count**2


def _members(fold: Int64[Tensor, " n"], count: int) -> Float64[Tensor, "n f"]:
    return torch.nn.functional.one_hot(fold, count).double()


def _score(
    label: str,
    says: str,
    mmds: dict[str, MMD],
    details: dict[str, dict[str, str]],
    sides: tuple[Table, Real, EvaluationConfig],
    *,
    most: int,
    means: bool = True,
) -> Score:
    """A score of some encoders; the control puts as many val rows in the place of the judged ones."""
    generated, real, config = sides
    pools, seed = Pools.of(generated, real), config.seed
    judged, train = (pool.sample(most, "kernel", seed) for pool in (pools.generated, pools.train))
    fresh = pools.val.sample(len(judged), "kernel", seed)
    fold = folds(len(judged), seed)
    replicates, controls = {}, {}
    for name, mmd in mmds.items():
        target = Picked(real.train.features[name], train)
        real_mean = mmd.mean(mmd.within(target, torch.zeros(len(train), dtype=torch.int64)).sum(), len(train))
        replicates[name] = mmd.replicates(Picked(generated.features[name], judged), fold, target, real_mean)
        val = Picked(real.val.features[name], fresh)
        controls[name] = mmd.replicates(val, folds(len(fresh), seed), target, real_mean)
    sizes = {"rows": len(judged), "real_rows": len(train), "control_rows": len(fresh)}
    return score_of(
        label,
        "lower",
        says,
        replicates,
        real.held_out,
        controls=controls,
        limits=(-math.inf if all(mmd.unbiased for mmd in mmds.values()) else 0.0, math.inf),
        details=details,
        means=means,
        notes={**sizes, "law": pools.law},
    )
