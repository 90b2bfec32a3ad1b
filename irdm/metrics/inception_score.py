"""Inception score (Salimans et al., 2016): are the classes that Inception sees sure, and of many kinds?

    IS = mean over 10 parts of exp( mean over the rows of a part of KL( p(y | x) || mean of p(y | x) over the part ) )

It looks at no real image: it cannot see noise that Inception calls a class, nor an image that is missing. Real images
stand beside it. The parts are random; p is the softmax of FID's Inception without the bias of its last layer, as
torch-fidelity takes it.

Letters: n rows, y classes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from irdm.metrics.base import BLOCK, EvaluationConfig, Pools
from irdm.metrics.intervals import folds, score_of
from irdm.metrics.score import Score
from irdm.metrics.tables import Picked, Real, Table, published
from irdm.ops.rows import Rows, row_blocks

LOGITS = "inception_logits"
"""The encoder whose features are the logits of FID's Inception."""


def inception_score(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """The score of all judged rows, where the encoder `inception_logits` is there. Its replicates are the ten parts.

    The control takes val rows, as many as were judged where there are as many: a part of fewer rows scores lower.
    """
    if LOGITS not in generated.features:
        return {}
    pools, seed = Pools.of(generated, real), config.seed
    fresh = pools.val.sample(len(generated), "inception score", seed)
    control = parts(Picked(real.val.features[LOGITS], fresh), folds(len(fresh), seed))
    score = score_of(
        published("Inception score", generated, real),
        "higher",
        "Whether Inception is sure of the class of each image, and sees many classes; higher is better.",
        {LOGITS: parts(generated.features[LOGITS], folds(len(generated), seed))},
        real.held_out,
        controls={LOGITS: control},
        limits=(1.0, math.inf),
        notes={"rows": len(generated), "control_rows": len(fresh), "law": pools.law},
    )
    return {"inception_score": score}


def parts(logits: Rows, fold: Int64[Tensor, " n"]) -> Float64[Tensor, " k"]:
    """The score of each part, in float64: `fold` is the part, from 0, of each row of logits [n, y]."""
    count, found = int(fold.max()) + 1, []
    for part in range(count):
        rows = (fold == part).nonzero()[:, 0]
        mean, negative_entropy = 0.0, 0.0
        for block in row_blocks(Picked(logits, rows), BLOCK):
            log_p = block.double().log_softmax(1)
            mean = mean + log_p.exp().sum(0) / len(rows)
            negative_entropy += (log_p.exp() * log_p).sum().item() / len(rows)
        assert isinstance(mean, Tensor)
        found.append(math.exp(negative_entropy - torch.special.xlogy(mean, mean).sum().item()))
    return torch.tensor(found, dtype=torch.float64)
