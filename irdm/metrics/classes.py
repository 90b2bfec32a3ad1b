"""Is every class there, in its proportion? What a linear classifier tells of the judged images is compared with val.

The classes of the judged images need not be known. A ridge regression on the classes of train gives an image a number
for each; its mean over images is lower where a class is missing, even one that is taken for another half of the time,
for the classifier errs alike on the real images beside (Lipton et al., 2018, arXiv 1802.03916, find a shift of labels
so). The class counts whose mean differs by most standard errors, and its chance is corrected for their number.

This is linear discriminant analysis of the leading whitened directions of features, those of several encoders side by
side, with the penalty whose squared error is least when each train image is left out in turn (Allen, 1974).

Letters: n judged rows, m train rows, d directions of all encoders, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float64, Int64
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from irdm.conditions import Classes
from irdm.metrics.base import BLOCK, EvaluationConfig, Pools
from irdm.metrics.intervals import fold_means, folds, interval, over_encoders
from irdm.metrics.score import Estimate, Score
from irdm.metrics.tables import Real, Table
from irdm.ops.gaussian import Moments
from irdm.ops.rows import Rows, row_blocks

DIRECTIONS = 64
"""Of the features of an encoder at most: those in which train varies most."""
PENALTIES = tuple(10 ** (k / 2) for k in range(-4, 13))
FEWEST = 10
"""Rows of a side for each class, on average; where a side has fewer nothing is said."""


def class_shares(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """By how many standard errors the class that differs most is rarer, or more frequent, than among val images.

    Under each encoder, and under those of a group together; at most `manifold_rows` of a side. Notes name the class and
    say how often it comes, where real images have 1. The interval is a jackknife over ten folds of the judged rows.
    Empty where train or val has no classes, or a side fewer than ten rows for each.
    """
    known, fresh = real.train.conditions, real.val.conditions
    if not isinstance(known, Classes) or not isinstance(fresh, Classes) or known.spec != fresh.spec:
        return {}
    pools, seed, count = Pools.of(generated, real), config.seed, len(known.spec.names)
    chosen = [pool.sample(config.manifold_rows, "classes", seed) for pool in (pools.generated, pools.train, pools.val)]
    judged, train, val = (side.only(rows) for side, rows in zip((generated, real.train, real.val), chosen, strict=True))
    if count < 2 or min(len(judged), len(train), len(val)) < FEWEST * count:
        return {}
    key = ("classes", *(rows.numpy().tobytes() for rows in chosen[1:]))
    learned = real.remembered.setdefault(key, _Learned(train, val, real.moments))
    rows = {name: learned.along(name, features) for name, features in judged.features.items()}
    asked, shown, fold = judged.conditions, labels(val), folds(len(judged), seed)

    def estimate(names: Sequence[str]) -> Estimate:
        weights, theirs = learned.classifier(names)
        ours = torch.cat([rows[name] for name in names], 1) @ weights
        steps = torch.stack([_step(theirs[:, one], shown == one) for one in range(count)])
        if pools.law == "stratified" and isinstance(asked, Classes):  # what it has more than real ones of its class
            usual = torch.stack([theirs[shown == one].mean(0) for one in range(count)])
            ours, theirs = ours - usual[asked.labels], theirs - usual[shown]
        error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
        error = torch.where((error > 0) & (steps > 0), error, torch.inf)  # a class that is not told says nothing
        more = ours.mean(0) - theirs.mean(0)
        most = int((more / error).abs().argmax())
        found = fold_means((ours[:, most] - theirs[:, most].mean()) / error[most] * more[most].sign(), fold)
        value, (low, high) = found.mean().item(), interval(found)
        share = max(0.0, 1 + (more / steps)[most].item()) if steps[most] > 0 else None
        return Estimate(
            value=value,
            ci95=(max(0.0, low), max(0.0, high)),
            control=float(stats.norm.isf((1 - 0.5 ** (1 / count)) / 2)),  # the median of real draws
            p_real=min(1.0, 2 * count * float(stats.norm.sf(value))),
            replicates=tuple(found.tolist()),
            notes={"class": known.spec.names[most], "share": share},
        )

    score = over_encoders(
        "class shares",
        "lower",
        "How many standard errors the share of a class lies from that of real images, of the class that differs most: "
        "about 2 for real images of ten classes, more where a class is missing, rare or too frequent.",
        list(generated.features),
        real.held_out,
        estimate,
        notes={"rows": len(judged), "train_rows": len(train), "fresh_rows": len(val), "law": pools.law},
    )
    return {"class_shares": score}


def labels(table: Table) -> Int64[Tensor, " n"]:
    """The classes of a table that has some."""
    assert isinstance(table.conditions, Classes)
    return table.conditions.labels


@dataclass(frozen=True)
class _Learned:
    """What is found of the real images alone: the leading directions of each encoder, and classifiers."""

    train: Table
    val: Table
    moments: Mapping[str, Moments]
    axes: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    sides: dict[str, list[Tensor]] = field(default_factory=dict)
    classifiers: dict[tuple[str, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def along(self, name: str, rows: Rows) -> Float64[Tensor, "n d"]:
        """Rows of features along the leading directions of train, each of which has variance 1 there."""
        if name not in self.axes:
            self.axes[name] = leading(self.moments[name])
        mean, axes = self.axes[name]
        return torch.cat([((block.to(mean) - mean) @ axes).cpu() for block in row_blocks(rows, BLOCK)])

    def classifier(self, names: Sequence[str]) -> tuple[Float64[Tensor, "d c"], Float64[Tensor, "v c"]]:
        """The weights for some encoders together, and what they tell of val."""
        for name in names:
            if name not in self.sides:
                self.sides[name] = [self.along(name, side.features[name]) for side in (self.train, self.val)]
        key = tuple(names)
        if key not in self.classifiers:
            train, val = (torch.cat([self.sides[name][side] for name in names], 1) for side in (0, 1))
            weights = ridge(train, F.one_hot(labels(self.train), self.val.conditions.spec.groups).double())
            self.classifiers[key] = weights, val @ weights
        return self.classifiers[key]


def leading(found: Moments) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d k"]]:
    """The mean of rows, and the directions in which they vary most, over the root of the variance there."""
    variance, axes = torch.linalg.eigh(found.scatter / max(1, found.count - 1))
    kept = variance > 1e-6 * variance[-1].clamp(min=1e-30)
    kept[:-DIRECTIONS] = False
    return found.mean, axes[:, kept] / variance[kept].sqrt()


def ridge(rows: Float64[Tensor, "m d"], targets: Float64[Tensor, "m c"]) -> Float64[Tensor, "d c"]:
    """Weights of the ridge regression, after centring, whose squared error is least when rows are left out in turn."""
    rows, targets = rows - rows.mean(0), targets - targets.mean(0)
    values, axes = torch.linalg.eigh(rows.T @ rows)
    turned = rows @ axes
    products, squares = turned.T @ targets, turned.square()
    best, least = torch.zeros_like(products), math.inf
    for penalty in PENALTIES:
        weights = products / (values.clamp(min=0) + penalty)[:, None]
        leverage = (squares / (values.clamp(min=0) + penalty)).sum(1, keepdim=True) + 1 / len(rows)
        error = ((targets - turned @ weights) / (1 - leverage)).square().mean().item()
        if error < least:
            best, least = weights, error
    return axes @ best


def _step(scores: Float64[Tensor, " v"], of_class: Bool[Tensor, " v"]) -> Float64[Tensor, ""]:
    """By how much the mean score of a class is higher where it comes twice for once; NaN without one, or others."""
    return of_class.double().mean() * (scores[of_class].mean() - scores[~of_class].mean())
