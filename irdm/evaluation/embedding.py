"""Images to tables of features, in memory: by any number of processes, a micro-batch of images at a time.

Letters: n rows, k rows of a share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from irdm.data.base import Dataset, Split
from irdm.distributed import Ranks
from irdm.encoders.base import Battery, encoder_identity
from irdm.metrics.base import EvaluationConfig
from irdm.metrics.tables import Real, Table, row_order
from irdm.ops.gaussian import Moments
from irdm.ops.rows import row_blocks
from irdm.progress import Meter, Say, silent
from irdm.store.engine import plain
from irdm.store.real import real_identity


def embed(
    split: Split,
    encoders: Mapping[str, nn.Module],
    *,
    micro_batch: int = 256,
    device: str | torch.device = "cpu",
    rows: Int64[Tensor, " n"] | None = None,
    ranks: Ranks | None = None,
    progress: Say | None = None,
) -> Table:
    """The features and thumbnails of all images of a split, or of some rows in their order, with their conditions.

    Never more than a micro-batch of images is held. Each rank embeds its share, and all get the whole table, which lies
    on the device, as the encoders must. Raises ValueError for an image that cannot be used, or NaN from an encoder.
    """
    rows = torch.arange(len(split)) if rows is None else rows
    ranks = ranks or Ranks()
    own, parts, small = rows[ranks.share(len(rows))], [], []
    count = Meter("features", len(own), "images", progress)
    blocks = [block for block in own.split(split.at_once(micro_batch)) if len(block)]
    for block, done in zip(blocks, plain(split, encoders, blocks, str(device)), strict=True):
        parts.append(done.features)
        small.append(done.thumbnails)
        count(len(block))
    features = {name: torch.cat([part[name] for part in parts]) for name in encoders}
    pictures = None if None in small else torch.cat(small).to(device)
    if ranks.size > 1:
        features = {name: ranks.gather(table, len(rows)) for name, table in features.items()}
        pictures = None if pictures is None else ranks.gather(pictures, len(rows))
    return Table(features, split.conditions[rows], split.resized, pictures)


def real_of(
    dataset: Dataset,
    battery: Battery,
    config: EvaluationConfig,
    *,
    device: str | torch.device = "cpu",
    weights: Path | None = None,
    ranks: Ranks | None = None,
    progress: Say | None = None,
) -> Real:
    """The real side of a dataset in memory: what a reference on disk of the same images and seed is.

    `weights` is the folder of the weights of pretrained encoders, whose hashes are part of the identity.
    """
    encoders, say = dict(battery.encoders.items()), progress or silent

    def table(split: Split, rows: Tensor) -> Table:
        return embed(
            split, encoders, micro_batch=config.micro_batch, device=device, rows=rows, ranks=ranks, progress=progress
        )

    say(f"embedding {len(dataset.train)} training and {min(len(dataset.val), config.table_rows)} held-out images")
    order = row_order(len(dataset.train), config.seed)
    train = table(dataset.train, order[: config.table_rows])
    moments = {name: Moments.of(row_blocks(rows)) for name, rows in train.features.items()}
    for start in range(config.table_rows, len(order), config.table_rows):
        more = table(dataset.train, order[start : start + config.table_rows]).features
        moments = {name: moments[name] + Moments.of(row_blocks(more[name])) for name in moments}
    val = table(dataset.val, row_order(len(dataset.val), config.seed)[: config.table_rows])
    identity = real_identity(
        dataset,
        {name: encoder_identity(encoder, weights) for name, encoder in encoders.items()},
        battery.held_out,
        table_rows=config.table_rows,
        seed=config.seed,
    )
    return Real(train, val, moments, battery.held_out, identity)
