"""Does an image go with its text as real ones do? The MMD ratio of images and texts together.

Letters: n rows, d features, c columns of tau.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from irdm.metrics.base import EvaluationConfig, Pools
from irdm.metrics.mmd import FourierTarget
from irdm.metrics.ratio import ratio
from irdm.metrics.score import Score
from irdm.metrics.tables import Real, Table
from irdm.ops.embedding import median_distance
from irdm.ops.rows import Rows, sample_rows
from irdm.ops.sampling import generator_for

BANDWIDTH_ROWS = 10_000


class Joined:
    """Features [n, d] and s tau [n, c] side by side, read as they are asked for: `Rows` [n, d + c]."""

    def __init__(self, features: Rows, tau: Rows, scale: float):
        self._features, self._tau, self._scale = features, tau, scale
        self.shape = (len(features), features.shape[1] + tau.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        rows = self._features[index]
        return torch.cat([rows, self._scale * self._tau[index].to(rows)], 1)


def joint_ratio(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """MMD^2 to train of rows [features | s tau], over that of val; s is the median distance of train features.

    Images that are as good but go with other texts score worse here alone. Empty where images have no texts, or tau of
    the two sides is by different encoders.
    """
    tables = {"generated": generated, "train": real.train, "val": real.val}
    spec = real.train.conditions.spec
    taus = {side: table.conditions.tau for side, table in tables.items()}
    alike = all(table.conditions.spec == spec for table in tables.values())
    if not spec.free_text or not alike or any(tau is None for tau in taus.values()):
        return {}
    scales = {}
    for name, rows in real.train.features.items():
        some = sample_rows(rows, BANDWIDTH_ROWS, generator_for("joint", config.seed))
        scales[name] = median_distance(some - some.mean(0))

    def joined(side: str) -> Table:
        tau, table = taus[side], tables[side]
        assert tau is not None
        rows: dict[str, Rows] = {name: Joined(rows, tau, scales[name]) for name, rows in table.features.items()}
        return replace(table, features=rows)

    sides = {side: joined(side) for side in tables}
    pools = Pools.of(sides["generated"], replace(real, train=sides["train"], val=sides["val"]))
    chosen = pools.train.sample(config.rows, "target", config.seed)

    def targets(name: str) -> FourierTarget:
        rows = sides["train"].features[name][chosen]
        return FourierTarget.of(name, rows, config.rff_features, config.rff_seed)

    says = "Squared MMD to train of images together with their texts, over that of fresh real pairs: lower is better."
    score = ratio(
        "joint MMDr", says, targets, pools.generated, pools.val, real.held_out, config, most=len(chosen), law=pools.law
    )
    return {"joint_ratio": score}
