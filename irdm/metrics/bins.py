"""Are all kinds of images there, each in its proportion? Bins of features are counted (Richardson and Weiss, 2018).

K-means divides train into ten bins, four times, under each encoder: kinds of images, as it sees them. Pearson's
chi-square compares the numbers of judged and of val rows in the bins: of each division, over its degrees of freedom,
and averaged. It is about 1 for fresh real images and grows with the number of images where proportions differ. Train is
not counted, as encoders are fitted to it.

With u the bins of a row, each as 0 or 1 less its share p of all rows, over sqrt(p), it is n m/(n + m) times the squared
length of mean(u, judged) - mean(u, val). Under permutations of the rows that is a sum of chi-squares of one degree of
freedom, weighted by the eigenvalues of S = cov(u), to first order. Bins of several encoders are in S together, so that
the chance of a mean over encoders is known too: it sees what no encoder sees alone.

Letters: n judged rows, m val rows, b bins of all divisions, f folds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from irdm.metrics.base import BLOCK, EvaluationConfig, Pools
from irdm.metrics.intervals import folds, jackknife, log_interval, over_encoders, standard_error
from irdm.metrics.score import Estimate, Score
from irdm.metrics.tables import Picked, Real, Table
from irdm.ops.kmeans import kmeans
from irdm.ops.rows import Rows, row_blocks
from irdm.ops.sampling import generator_for

BINS = 10
DIVISIONS = 4
FEWEST = 10
"""Rows of a side for each bin: where a side has fewer, there are fewer bins."""


def bins(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """The score under each encoder and its mean, of at most `manifold_rows` of each side.

    The interval, on a log scale, is a jackknife over ten folds of the judged rows. What it counts twice of a squared
    distance makes up for the luck of the real rows: without it an interval holds the truth in 84 to 94% of redrawn
    worlds (docs/log.md).
    """
    pools, seed = Pools.of(generated, real), config.seed
    judged, train, fresh = (
        pool.sample(config.manifold_rows, "bins", seed) for pool in (pools.generated, pools.train, pools.val)
    )
    count = max(1, min(BINS, len(train), len(judged) // FEWEST, len(fresh) // FEWEST))
    fold = folds(len(judged), seed)
    divisions = _divisions(real, train, count, seed)
    replicates, kinds = {}, {}
    for name, features in generated.features.items():
        sides = (Picked(features, judged), Picked(real.val.features[name], fresh))
        found = [standardised(torch.cat([_bins(side, centres) for side in sides])) for centres in divisions[name]]
        kinds[name] = torch.cat(found, 1) / math.sqrt(DIVISIONS)
        ours, theirs = kinds[name].split([len(judged), len(fresh)])
        without = [chi_square(ours[fold != k], theirs) for k in range(int(fold.max()) + 1)]
        replicates[name] = jackknife(chi_square(ours, theirs), torch.tensor(without, dtype=torch.float64))

    def estimate(names: Sequence[str]) -> Estimate:
        covariance = torch.cat([kinds[name] for name in names], 1).T.cov() / len(names)
        found = torch.stack([replicates[name] for name in names]).mean(0)
        value = found.mean().item()
        return Estimate(
            value=value,
            ci95=log_interval(value, (standard_error(found) / value) ** 2, len(found) - 1) if value > 0 else (0.0, 0.0),
            control=covariance.trace().item(),
            p_real=beyond(value, covariance),
            replicates=tuple(found.tolist()),
        )

    sizes = {"rows": len(judged), "train_rows": len(train), "fresh_rows": len(fresh)}
    score = over_encoders(
        "bins",
        "lower",
        "Chi-square of the numbers of images in bins of features, per degree of freedom: about 1 for real images, more "
        "where kinds of images are missing, rare or too many.",
        list(replicates),
        real.held_out,
        estimate,
        notes={"bins": count, **sizes, "law": pools.law},
    )
    return {"bins": score}


def _divisions(real: Real, train: Int64[Tensor, " m"], count: int, seed: int) -> dict[str, list[Tensor]]:
    """The centres [count, d] of the bins of each division under each encoder: the same for whatever is judged."""
    key = ("bins", count, seed, train.numpy().tobytes())
    if key not in real.remembered:
        found = {}
        for name, features in real.train.features.items():
            rows = torch.cat(list(row_blocks(Picked(features, train), BLOCK)))
            found[name] = [kmeans(rows, count, generator_for("bins", seed, k)) for k in range(DIVISIONS)]
        real.remembered[key] = found
    return real.remembered[key]


def standardised(kinds: Int64[Tensor, " n"]) -> Float64[Tensor, "n b"]:
    """The bin of each row as rows whose `chi_square` is Pearson's over its degrees of freedom; empty bins are none."""
    rows = F.one_hot(kinds.unique(return_inverse=True)[1]).double()
    share = rows.mean(0)
    return (rows - share) / (share * max(1, len(share) - 1)).sqrt()


def chi_square(judged: Float64[Tensor, "n b"], fresh: Float64[Tensor, "m b"]) -> float:
    """n m/(n + m) times the squared distance of the means."""
    size = len(judged) * len(fresh) / (len(judged) + len(fresh))
    return size * (judged.mean(0) - fresh.mean(0)).square().sum().item()


def beyond(value: float, covariance: Float64[Tensor, "b b"]) -> float:
    """Chance that a sum of chi-squares weighted by the eigenvalues is at least as large (Imhof, 1961, equation 4.1).

    By the chi-square law, moved and scaled, that has its first three cumulants.
    """
    square = covariance @ covariance
    first, second, third = covariance.trace().item(), square.trace().item(), (square * covariance).sum().item()
    if not third > 0:
        return 1.0
    freedom = second**3 / third**2
    return float(stats.chi2.sf((value - first) * math.sqrt(freedom / second) + freedom, freedom))


def _bins(rows: Rows, centres: Float[Tensor, "k d"]) -> Int64[Tensor, " n"]:
    """The nearest centre of each row."""
    return torch.cat([torch.cdist(block, centres).argmin(1).cpu() for block in row_blocks(rows, BLOCK)])
