"""How an MMD to real data falls with the number of rows: in closed form, so a small real sample tells of a large one.

Letters: N rows, drawn with every stratum s in its proportion p_s; W = sum_s p_s (mean kernel of different rows of s).

    biased repulsion      E L(N) = a + b / N          b = mean k(x, x) - W
    unbiased repulsion    E L(N) = a + b / (N - 1)    b = (mean kernel of different rows, strata in proportion) - W

Only the repulsion depends on N. Its N^2 pairs are N of a row with itself, p_s N (p_s N - 1) of different rows of s, and
p_s p_t N^2 of rows of two strata. Without strata, W is the mean kernel of all different rows, and the unbiased b is 0.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from irdm.distances.kernel import MMD
from irdm.distributed import ALONE, Ranks


@torch.no_grad()
def expected_at(
    mmd: MMD[Any],
    real: Float[Tensor, "n d"],
    tau: Tensor | None,
    strata: Int64[Tensor, " n"] | None,
    count: int,
    ranks: Ranks = ALONE,
) -> float:
    """What `count` fresh rows score on average, told from n real ones with their strata in the same proportions.

    The limit a is cut at 0. An unbiased L of strata in proportion is below its limit, so that may give less than 0.

    Raises:
        ValueError: when half of the rows or more are alone in their stratum, which then has no pair.
    """
    rows = mmd.join(real.to(mmd.center), tau)
    n = len(rows)
    groups = [rows] if strata is None else [rows[(strata == s).to(rows.device)] for s in strata.unique()]
    pairs = [(len(group), mmd._own_kernel(group, ranks)[1]) for group in groups if len(group) > 1]
    told = sum(size for size, _ in pairs)
    if 2 * told <= n:
        raise ValueError(
            f"Of {n} held-out rows {n - told} are the only one of their class, so how the distance of {count} rows "
            f"differs from theirs is not known: hold out more images of each class, or lower the rollout to {n}."
        )
    within = sum(size * mean for size, mean in pairs) / told
    diagonal, everywhere = mmd._own_kernel(rows, ranks)
    excess = ((n - 1) * everywhere + within) / n - within if mmd._unbiased else diagonal - within
    limit = mmd._compare(rows, None, ranks).item() - excess / (n - mmd._unbiased)
    return max(limit, 0.0) + excess / (count - mmd._unbiased)
