"""The judge: every metric of one table against another. There is no other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from irdm.conditions import Conditions
from irdm.data.base import Dataset, Split
from irdm.distributed import ALONE, Ranks
from irdm.encoders.base import Battery
from irdm.evaluation.embedding import embed
from irdm.generate import Drawn
from irdm.generators import Generator
from irdm.metrics import METRICS
from irdm.metrics.base import MIN_ROWS, EvaluationConfig, Pools, check_tables
from irdm.metrics.score import Score, grouped
from irdm.metrics.sliced_wasserstein import SlicedTarget
from irdm.metrics.tables import Real, Table


def judge(
    generated: Table,
    real: Real,
    config: EvaluationConfig | None = None,
    *,
    only: Collection[str] | None = None,
    device: str | torch.device | None = None,
    ranks: Ranks = ALONE,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Score]:
    """Every score of `irdm.metrics.METRICS`, or of those named, computed on `device` or where the judged features are.

    Ranks that all have both sides divide the metrics, and each gets all scores.

    Raises ValueError when the two sides are not under the same encoders (a mean over fewer would still look like a
    score), and naming the encoder whose table has too few rows, another width, or NaN.
    """
    if odd := sorted(set(generated.features) ^ set(real.encoders)):
        raise ValueError(
            f"The judged and the real images are not under the same encoders: {', '.join(odd)} of one side alone. "
            "Embed both with all of them, or take the real side under fewer."
        )
    check_tables(generated, real)
    device = next(iter(generated.features.values()))[0:1].device if device is None else torch.device(device)
    generated, real = generated.to(device), real.to(device)
    scores: dict[str, Score] = {}
    names = [name for name in METRICS if only is None or name in only]
    own, found = names[ranks.rank :: ranks.size], {}
    with ranks.together():
        for number, name in enumerate(own, 1):
            if progress:
                progress(f"judging: {name} ({number} of {len(own)})")
            found[name] = METRICS[name](generated, real, config or EvaluationConfig())
    everyone = {name: some for part in ranks.exchange(found) for name, some in part.items()}
    for name in names:
        assert not everyone[name].keys() & scores.keys(), f"{name} gives scores of another metric: {[*everyone[name]]}"
        scores |= everyone[name]
    return scores


def evaluate(
    generated: Split,
    real: Real,
    encoders: Mapping[str, nn.Module],
    config: EvaluationConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    ranks: Ranks | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Table, dict[str, Score]]:
    """Embed images and judge them. Ranks divide both, and all get the table and the scores.

    Raises ValueError as `embed` and `judge` do.
    """
    config, ranks = config or EvaluationConfig(), ranks or Ranks()
    settings = {"micro_batch": config.micro_batch, "device": device, "ranks": ranks, "progress": progress}
    table = embed(generated, encoders, **settings)
    return table, judge(table, real, config, ranks=ranks, progress=progress)


class QuickCheck:
    """A cheap SW ratio for use during training. The real side is embedded, projected and sorted once, here.

    Conditions and noise are the same at every call, so that the numbers of two calls differ by the generator alone.
    """

    def __init__(
        self, dataset: Dataset, battery: Battery, config: EvaluationConfig, *, device: str | torch.device = "cpu"
    ):
        """Generator and battery must be on `device`. Raises ValueError for fewer than 8 train or held-out images."""
        self.encoders, self.held_out = dict(battery.encoders.items()), battery.held_out
        self.config, self.device, self.image_shape = config, device, dataset.image_shape
        train, val = (Table({}, split.conditions) for split in (dataset.train, dataset.val))
        pools = Pools.of(train, Real(train, val, {}, (), {}))
        n = min(config.quick_rows, len(pools.train), len(pools.val))
        if n < MIN_ROWS:
            raise ValueError(
                f"There are {len(train)} training and {len(val)} held-out images; a check needs {MIN_ROWS} of each."
            )
        seed = config.seed
        self.conditions: Conditions = train.conditions[pools.train.draws(n, 1, "quick", "generated", seed)[0]]
        """What generated images are asked for."""
        settings = {"micro_batch": config.micro_batch, "device": device}
        target = embed(
            dataset.train, self.encoders, rows=pools.train.sample(config.quick_rows, "quick", seed), **settings
        )
        fresh = embed(dataset.val, self.encoders, rows=pools.val.sample(n, "quick", seed), **settings)
        self._targets = {
            name: SlicedTarget.of(name, rows[0 : len(rows)], config.quick_directions, seed)
            for name, rows in target.features.items()
        }
        self._fresh = self._distances(fresh)
        if odd := [name for name, distance in self._fresh.items() if not distance > 0]:
            raise ValueError(f"Held-out images are the training images as {', '.join(odd)} see them; split them anew.")

    def __call__(self, generated: Generator | Split, seed: int = 0) -> dict[str, float]:
        """{"held_in": ratio, "held_out": ratio} of a generator's images, or of these; 1 is as good as held-out images.

        A group without encoders is left out.
        """
        if not isinstance(generated, Split):
            generated = Drawn(generated, self.conditions, self.image_shape, seed, device=str(self.device))
        table = embed(generated, self.encoders, micro_batch=self.config.micro_batch, device=self.device)
        found = self._distances(table)
        groups = grouped(list(found), self.held_out)
        return {
            group: sum(found[name] / self._fresh[name] for name in names) / len(names)
            for group, names in groups.items()
            if group != "mean"
        }

    def _distances(self, table: Table) -> dict[str, float]:
        return {name: target.distance(table.features[name][0 : len(table)]) for name, target in self._targets.items()}
