"""Frechet distance between the Gaussians of two feature tables: FID for Inception, FD-DINOv2 and so on for the others.

    FD = |m - m_r|^2 + tr S + tr S_r - 2 tr (S_r^1/2 S S_r^1/2)^1/2      (Heusel et al., 2017)

All in float64, from streamed moments with unbiased covariances. A sample's FD exceeds that of its distribution by about
b / n (Chong and Forsyth, 2020): compare at one n only, beside fresh real images at that n. With fewer rows than
dimensions the covariance is singular; the value is still the exact distance of the two sample Gaussians, and the
result carries a warning. The jackknife's interval is honest for a generator that differs from the data, and too wide
for one as good as real, where the distance is a degenerate statistic.

Letters: n rows, d features, k folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from irdm.metrics.base import BLOCK, Picked, Tables, check_table, finite_blocks, matched, panel
from irdm.metrics.intervals import folds, jackknife, panel_score
from irdm.ops.gaussian import Moments, frechet_distance, symmetric_root
from irdm.ops.rows import Rows

NAMES = {"inception": "FID", "dinov2": "FD-DINOv2"}
"""What the distance is called in the literature; other encoders get FD-<encoder>."""


def table_moments(name: str, table: Rows, block: int = BLOCK) -> Moments:
    """Moments of an encoder's table, streamed: what a reference keeps of its train rows.

    Shards and ranks may each take their own rows and add the moments up. Raises ValueError naming the encoder for fewer
    than 8 rows, NaN or infinity.
    """
    check_table(name, table)
    return Moments.of(finite_blocks(name, table, block))


def frechet_distances(
    generated: Tables,
    reference: Mapping[str, Moments],
    control: Tables | None = None,
    *,
    held_out: Sequence[str] = (),
    partial: bool = False,
    seed: int = 0,
    block: int = BLOCK,
) -> dict[str, dict]:
    """FD of each encoder and, where fresh real images allow it, its mean ratio to theirs.

    Args:
        generated: feature tables of the generator.
        reference: moments of the train rows by encoder.
        control: feature tables of fresh real images, of which as many are taken, at random, as were generated.
        held_out: encoders that did not train the generator.
        partial: judge the encoders that are there; the result names the `missing` ones.
        seed: of the folds and of the control's rows.
        block: rows read at once.

    Returns:
        `frechet_distance`: per encoder the value, its interval (jackknife over 10 folds of the generated rows: about n
        rows, bias included), the `bias` b / n estimated by the same jackknife, `dimensions`, `reference_rows`,
        `warning` and, with a control, `real_control`. Distances under different encoders have no common scale, so their
        means are null. `frechet_ratio`: FD over that of the control, 1 is as good as real, with means over encoders;
        only where the control has as many rows as were generated. Both have `rows` {generated, control}.

    Raises:
        ValueError: naming an encoder that is missing, of another width, with fewer than 8 rows, or not finite.
    """
    names, missing = panel(list(reference), generated, partial)
    rows = {"generated": len(generated[names[0]]), "control": 0}
    if control is not None:
        panel(names, control, False)
        rows["control"] = min(rows["generated"], len(control[names[0]]))
    fold = folds(rows["generated"], seed)
    distances, details, ratios = {}, {}, {}
    for name in names:
        real = reference[name]
        root, dim = symmetric_root(real.covariance), len(real.mean)
        check_table(name, generated[name], dim)
        picked = [Picked(generated[name], (fold == k).nonzero()[:, 0]) for k in range(int(fold.max()) + 1)]
        parts = [Moments.of(finite_blocks(name, table, block)) for table in picked]
        value = _distance(_merged(parts), real, root)
        without = torch.stack(
            [_distance(_merged([part for part in parts if part is not left_out]), real, root) for left_out in parts]
        )
        distances[name] = jackknife(value.item(), without)
        details[name] = {
            "name": NAMES.get(name, f"FD-{name}"),
            "bias": ((len(parts) - 1) * (without.mean() - value)).item(),
            "dimensions": dim,
            "reference_rows": real.count,
            "warning": _warning(rows["generated"], real.count, dim),
        }
        if control is not None:
            check_table(name, control[name], dim)
            fresh = Moments.of(finite_blocks(name, matched(control[name], rows["generated"], seed), block))
            details[name]["real_control"] = _distance(fresh, real, root).item()
            ratios[name] = distances[name] / details[name]["real_control"]
    score = panel_score("Frechet distance", "lower", distances, held_out, None, missing)
    score |= dict.fromkeys(("mean", "held_in", "held_out", "ci95", "held_in_ci95", "held_out_ci95"))
    for name in names:
        score["per_encoder"][name] |= details[name]
    result = {"frechet_distance": score | {"rows": rows}}
    if rows["control"] == rows["generated"]:
        ones = dict.fromkeys(names, 1.0)
        score = panel_score(f"FDr{len(names)}", "lower", ratios, held_out, ones, missing)
        result["frechet_ratio"] = score | {"rows": rows}
    return result


def _merged(parts: Sequence[Moments]) -> Moments:
    return sum(parts[1:], parts[0])


def _distance(sample: Moments, real: Moments, root: Float64[Tensor, "d d"]) -> Float64[Tensor, ""]:
    moments = (sample.mean, sample.covariance, real.mean, real.covariance, root)
    return frechet_distance(*(moment.to(root) for moment in moments), jitter=0.0).cpu()


def _warning(rows: int, reference_rows: int, dimensions: int) -> str | None:
    """What must be said beside the value when a covariance cannot have full rank."""
    few = {"generated": rows, "reference": reference_rows}
    said = [f"{count} {side} rows for {dimensions} dimensions" for side, count in few.items() if count <= dimensions]
    if not said:
        return None
    return f"{' and '.join(said)}: the covariance is singular and the bias is large; compare at equal n only."
