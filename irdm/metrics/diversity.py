"""Diversity within the judged images: do they repeat each other, and how many unlike ones are there?

    duplicates   share of images that repeat an earlier one, to the pixel or nearly so, beyond what real images do: the
                 test of `irdm.metrics.copies` on thumbnails, of distances to the nearest earlier image of the same set
                 over those to the fifth nearest train image
    vendi        Vendi score (Friedman and Dieng, 2023): exp of the entropy of the eigenvalues of K/n, where K is the
                 cosine similarity of features. n for images that have nothing in common, 1 for equal ones

Both grow with the number of images, so that as many real ones stand beside them.

Letters: n rows, d features, k folds.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from irdm.metrics.base import EvaluationConfig, Pool, Pools
from irdm.metrics.copies import both_sides, described, exact_repeats, excess, natural_excess, neighbours_of
from irdm.metrics.intervals import folds, interval, jackknife, score_of
from irdm.metrics.neighbours import nearest_neighbours
from irdm.metrics.score import Estimate, Score
from irdm.metrics.tables import Real, Table

VENDI_ROWS = 2000
"""At most this many images have a Vendi score: its eigenvalues take the cube of their number."""
BLOCK = 1024


def duplicates(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """Share of the judged images that repeat another, beyond that of val; the control is of halves of val.

    As many rows of both, at most `manifold_rows`; the note `exact` counts repeats to the pixel among all judged images.
    Empty where there are no thumbnails.
    """
    pools = Pools.of(generated, real)
    count = min(config.manifold_rows, len(pools.generated), len(pools.val))
    train = real.train.thumbnails
    if train is None or generated.thumbnails is None or real.val.thumbnails is None:
        return {}
    places = described(train)
    fold = folds(count, config.seed)
    judged, fresh = (_repeats(side, fold, places, config.seed) for side in (pools.generated, pools.val))
    found, natural = excess(judged.amin(1), fresh.amin(1)), natural_excess(fresh.amin(1), count, config.seed)
    close, column = judged <= found.limit, torch.arange(judged.shape[1])
    without = [close[fold != k][:, column != k].any(1).double().mean() for k in column]
    replicates = jackknife(found.excess, torch.stack(without))
    low, high = interval(replicates)
    estimate = Estimate(
        value=found.excess,
        ci95=(max(0.0, low), max(0.0, high)),
        control=natural.mean().item(),
        control_error=natural.std().item(),
        p_real=both_sides(found.chance),
        replicates=tuple(replicates.tolist()),
        notes={"exact": exact_repeats(generated.thumbnails), "images": len(generated)},
    )
    score = Score(
        label="duplicates",
        direction="real",
        says="Share of the images that repeat another one, or nearly so, beyond what as many real images do.",
        mean=estimate,
        notes={"rows": count, "law": pools.law},
    )
    return {"duplicates": score}


def vendi(generated: Table, real: Real, config: EvaluationConfig) -> dict[str, Score]:
    """The Vendi score under each encoder; encoders have no common scale, so there is no mean.

    Of at most VENDI_ROWS images and as many val images, which are the control. Intervals are jackknives over ten folds.
    """
    pools = Pools.of(generated, real)
    count = min(VENDI_ROWS, len(pools.generated), len(pools.val))
    rows = {side: getattr(pools, side).sample(count, "vendi", config.seed) for side in ("generated", "val")}
    fold = folds(count, config.seed)

    def replicates(features: Float[Tensor, "n d"]) -> Float64[Tensor, " k"]:
        without = [vendi_score(features[fold != k]) for k in range(int(fold.max()) + 1)]
        return jackknife(vendi_score(features), torch.tensor(without, dtype=torch.float64))

    score = score_of(
        "Vendi score",
        "real",
        "How many unlike images there are: the exponential of the entropy of the eigenvalues of their cosine "
        "similarities. As fresh real images score is best.",
        {name: replicates(part[rows["generated"]]) for name, part in generated.features.items()},
        real.held_out,
        controls={name: replicates(part[rows["val"]]) for name, part in real.val.features.items()},
        limits=(1.0, float(count)),
        means=False,
        notes={"rows": count, "law": pools.law},
    )
    return {"vendi": score}


def vendi_score(features: Float[Tensor, "n d"]) -> float:
    """exp(-sum p log p) of the eigenvalues p of K/n, with K the cosine similarities of rows; a row of zeros has none.

    From the smaller of K and the second moments of the unit rows, which have the same eigenvalues but for zeros.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    gram = unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T
    share = torch.linalg.eigvalsh(gram / len(unit)).clamp(min=0)
    return torch.special.entr(share).sum().exp().item()


def _repeats(pool: Pool, fold: Int64[Tensor, " n"], train: Float32[Tensor, "m d"], seed: int) -> Float64[Tensor, "n k"]:
    """Distance of images of a draw to the nearest earlier one in each fold, over that to the fifth nearest of train."""
    count = len(fold)
    numbers, pictures = pool.sample(count, "duplicates", seed), pool.table.thumbnails
    assert pictures is not None
    rows = described(pictures[numbers]).to(train)
    far = nearest_neighbours(rows, train, neighbours_of(train))[0][:, -1].double()
    order = fold.argsort(stable=True)
    sizes = torch.bincount(fold).tolist()
    near = []
    for start in range(0, count, BLOCK):
        block = rows[start : start + BLOCK]
        distance = torch.cdist(block, rows, compute_mode="donot_use_mm_for_euclid_dist")
        distance.masked_fill_(torch.ones_like(distance, dtype=torch.bool).triu(start), torch.inf)
        near.append(torch.stack([part.amin(1) for part in distance[:, order].split(sizes, 1)], 1).cpu().double())
    nearest = torch.cat(near)
    return torch.where(nearest > 0, nearest / far[:, None], 0.0)
