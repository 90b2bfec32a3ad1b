"""Label accuracy: does a generated image show the class it was asked for?

Letters: n rows, k neighbours.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from irdm.conditions import Classes
from irdm.metrics.base import EvaluationConfig, Pool, Pools
from irdm.metrics.intervals import fold_means, folds, score_of
from irdm.metrics.neighbours import nearest_neighbours
from irdm.metrics.score import Score
from irdm.metrics.tables import Picked, Real, Table


def label_accuracy(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """Share of images whose class the nearest train images find, by a vote of `neighbours` in feature space.

    A tie goes to the class of the nearest voter. The control is the share of val images: how far the vote can be
    trusted. Empty for images without classes, or of other classes than train's. At most `manifold_rows` of a side.
    """
    asked, known = generated.conditions, real.train.conditions
    if not isinstance(asked, Classes) or not isinstance(known, Classes) or asked.spec != known.spec:
        return {}
    pools, k = Pools.of(generated, real), min(config.neighbours, len(real.train))

    def hits(name: str, pool: Pool) -> Float64[Tensor, " n"]:
        rows = pool.sample(config.manifold_rows, "accuracy", config.seed)
        wanted = pool.table.conditions[rows]
        assert isinstance(wanted, Classes)
        near = nearest_neighbours(Picked(pool.table.features[name], rows), real.train.features[name], k)[1]
        return (vote(known.labels[near]) == wanted.labels).double()

    def replicates(pool: Pool) -> dict[str, Float64[Tensor, " k"]]:
        of_rows = {name: hits(name, pool) for name in generated.features}
        return {name: fold_means(rows, folds(len(rows), config.seed)) for name, rows in of_rows.items()}

    score = score_of(
        "label accuracy",
        "higher",
        f"Share of images for which a vote of the {k} nearest train images finds the class that was asked for.",
        replicates(pools.generated),
        real.held_out,
        controls=replicates(pools.val),
        limits=(0.0, 1.0),
        notes={"neighbours": k, "rows": min(config.manifold_rows, len(pools.generated)), "law": pools.law},
    )
    return {"label_accuracy": score}


def vote(labels: Int64[Tensor, "n k"]) -> Int64[Tensor, " n"]:
    """The most frequent of k labels, nearest first; of several, the one whose first voter is nearest."""
    k = labels.shape[1]
    votes = (labels[:, :, None] == labels[:, None]).sum(2)
    return labels.gather(1, (votes * k - torch.arange(k)).argmax(1, keepdim=True))[:, 0]
