"""Distance of judged rows to real rows over the distance of fresh real rows to the same: 1 is as good as real.

    r_e = distance(judged, train) / distance(val, train),    the score is the arithmetic mean over encoders

A distance depends on the number of rows, so all draws have one size n, and since none is smaller than it need be: the
smallest of `EvaluationConfig.rows`, the judged rows, the train rows and half of the val rows. Judged rows and val rows
make as many disjoint draws as they can, t and s of them; the mean of their distances estimates without bias what one
draw of n scores. The control puts one half of the val draws in the place of the judged ones, against the other half.
Every draw follows one law (`irdm.metrics.base.Pools`).

How far one real draw moves. At the null (a real draw against real data) a squared distance is a degenerate statistic:
a row bootstrap is inconsistent for it, and the spread of overlapping draws too small by an amount that depends on the
share of its linear part. But two DISJOINT draws of n rows are independent draws, however often and however the rows
are dealt anew. So val is dealt again and again, and the mean over deals of the variance between the disjoint draws of
one deal is, without bias, the variance V of one real draw (on a log scale).

How far the judged draws move. The jackknife over folds of their rows gives L + (2 + 1/(K - 1)) Q where the truth is
L + Q, of a linear part L and a degenerate part Q: right for a generator that is far from real, too wide for one that is
as good. Q follows from V: for n rows against m target rows of the same law L = 2 (n/m) Q, so that Q = V / (1 + 2 n/m),
relative to the squared distance. The replicates are tightened by that much.

So log r has the variance V/s + (L + Q)/t, from which its interval (log scale: never negative). Near 1 two numbers say
how far the judged draws move: the jackknife, which knows these rows and no others, and V/r^2, V/r^4 for a distance,
which knows real rows. With heavy tails either may lack the one row that makes a distance, so the interval takes both:
two thirds of the way from the first to the second, less where the jackknife finds more, as it does far from 1. For
fresh real images in the place of the judged ones the variance is V/s + V/t, from which `p_real`, one-sided; there the
mean of V and of the judged rows' own counts where that is larger. Rows are shared by encoders, so the interval of a
mean over encoders counts their correlation. All of it is conditional on the target rows (train, or val for the unseen
ratio).

Letters: n rows of a draw, d features, t judged draws, s real draws, b draws in all, g deals, e encoders, k folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from irdm.metrics.base import MIN_ROWS, EvaluationConfig, Law, Pool
from irdm.metrics.intervals import chance, jackknife, log_interval, over_encoders, standard_error, tightened, together
from irdm.metrics.score import Estimate, Score
from irdm.ops.rows import Rows
from irdm.ops.threads import InTurn, SideBySide

PARTS = 20  # folds of a judged draw: with fewer the t of a comparison has long tails
MOST_DRAWS = 8  # disjoint real draws behind a denominator: more would take longer than they are worth
FREEDOM = 12.0  # degrees of freedom of V, as redrawing shows (docs/log.md)


@runtime_checkable
class Target(Protocol):
    """One real sample under one encoder, prepared once."""

    power: ClassVar[int]
    """Which power of the distance is quadratic in the sample: 2 for a distance, 1 for a squared one."""

    @property
    def count(self) -> int:
        """Rows of the real sample."""
        ...

    def distance(self, rows: Float[Tensor, "n d"]) -> float:
        """Distance of a sample to the real one."""
        ...

    def distances(self, table: Rows, draws: Sequence[Int64[Tensor, " _"]]) -> Float64[Tensor, " b"]:
        """Distances of many draws from one table, cheaper, of which only relative differences are used."""
        ...


def ratio(
    label: str,
    says: str,
    target: Callable[[str], Target],
    generated: Pool,
    fresh: Pool,
    held_out: Sequence[str],
    config: EvaluationConfig,
    *,
    most: int,
    law: Law,
) -> Score:
    """The ratio by encoder and its means, lower is better.

    Memory is that of a draw, an encoder at a time; on a CPU each thread has an encoder.

    Args:
        label: SW_r and the like; the number of encoders is appended.
        says: as in Score.
        target: prepares the real sample of an encoder.
        generated: judged rows.
        fresh: real rows that are not in the target.
        held_out: encoders that did not train the generator.
        config: rows, resamples and seed are read.
        most: no draw has more rows than this.
        law: how the pools draw.

    Raises ValueError for too few rows, and fresh rows at distance 0.
    """
    names, seed = list(generated.table.features), config.seed
    n = min(config.rows, most, len(generated), len(fresh) // 2)
    if n < MIN_ROWS:
        raise ValueError(
            f"{label}: got {len(generated)} judged, {most} target and {len(fresh)} fresh real rows; a ratio needs at "
            f"least {MIN_ROWS}, {MIN_ROWS} and {2 * MIN_ROWS}, and thousands to mean something."
        )
    times = min(len(fresh) // n, MOST_DRAWS)
    judged = generated.draws(n, len(generated) // n, "generated", seed)
    deals = max(2, math.ceil(config.resamples / times))
    dealt = [fresh.draws(n, times, "real", seed, deal) for deal in range(deals)]
    found, judged_rows, fresh_rows = _Found(), generated.table.features, fresh.table.features

    def measure(name: str) -> _Measured:
        return _measured(name, target(name), judged_rows[name], judged, fresh_rows[name], dealt)

    order = SideBySide() if judged_rows[names[0]][0:1].is_cpu else InTurn()
    for name, measured in zip(names, order.map(measure, names), strict=True):
        found.add(name, measured)
    notes = {"rows": n, "draws": len(judged), "real_draws": times, "resamples": deals * times, "law": law}
    return over_encoders(
        f"{label}{len(names)}", "lower", says, names, held_out, found.estimate, found.details, notes=notes
    )


class _Measured(NamedTuple):
    """One encoder's distances: of judged draws over real ones, the control's, and how far each moves."""

    value: float
    control: float
    denominator: float
    moves: Float64[Tensor, "g s"]
    replicates: Float64[Tensor, " k"]
    linear: float
    """2 n/m, of n rows of a draw against m of the target."""
    power: int
    draws: int


def _measured(
    name: str,
    target: Target,
    rows: Rows,
    judged: Int64[Tensor, "t n"],
    real: Rows,
    dealt: Sequence[Int64[Tensor, "s n"]],
) -> _Measured:
    (draws, n), times = judged.shape, len(dealt[0])
    fresh = [target.distance(real[draw]) for draw in dealt[0]]
    halves = [sum(half) / len(half) for half in (fresh[: times // 2], fresh[times // 2 :])]
    denominator = sum(fresh) / times
    if not min(halves) > 0:
        raise ValueError(
            f"Encoder '{name}': fresh real rows lie at distance {min(halves)}, expected above 0. Do val and train "
            "hold the same images?"
        )
    value = sum(target.distance(rows[draw]) for draw in judged) / draws / denominator
    moved = target.distances(real, [draw for deal in dealt for draw in deal]).log().reshape(len(dealt), times)
    replicates = torch.stack([_without_folds(target, rows[draw]) for draw in judged]).mean(0)
    return _Measured(
        value=value,
        control=halves[1] / halves[0],
        denominator=denominator,
        moves=moved - moved.mean(1, keepdim=True),
        replicates=replicates,
        linear=2 * n / target.count,
        power=target.power,
        draws=draws,
    )


class _Found:
    """Distances of every encoder, and the estimates they make."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.controls: dict[str, float] = {}
        self.moves: dict[str, Float64[Tensor, "g s"]] = {}
        self.replicates: dict[str, Float64[Tensor, " k"]] = {}
        self.details: dict[str, dict[str, float]] = {}
        self.draws = 0
        self.power = 1

    def add(self, name: str, one: _Measured) -> None:
        """Take what was measured of one encoder."""
        self.draws, self.power = one.draws, one.power
        self.values[name], self.controls[name], self.moves[name] = one.value, one.control, one.moves
        variance = self._variance([name])
        quadratic = variance / one.draws / (1 + one.linear)  # relative
        share = quadratic / (one.value or 1.0) ** (2 * one.power)
        self.replicates[name] = one.value * tightened(one.replicates, share)
        self.details[name] = {"real_distance": one.denominator, "real_spread": math.sqrt(variance)}

    def estimate(self, names: Sequence[str]) -> Estimate:
        """The mean over some encoders."""
        value = sum(self.values[name] for name in names) / len(names)
        replicates = torch.stack([self.replicates[name] for name in names]).mean(0)
        variance, times = self._variance(names), self.moves[names[0]].shape[1]
        found = Estimate(
            value=value,
            ci95=(0.0, 0.0),
            control=sum(self.controls[name] for name in names) / len(names),
            p_real=1.0,
            replicates=tuple(replicates.tolist()),
        )
        if not value > 0:
            return found
        denominator = math.sqrt(variance / times), FREEDOM
        judged = standard_error(replicates) / value
        as_real = variance / self.draws / max(1.0, value) ** (2 * self.power)
        error, freedom = together(denominator, (math.sqrt(moved(judged**2, as_real)), FREEDOM + len(replicates) - 1))
        real = variance / self.draws
        fresh = math.sqrt(max(real, (real + judged**2) / 2)), FREEDOM
        return found.model_copy(
            update={
                "ci95": log_interval(value, error**2, freedom),
                "control_error": found.control * math.sqrt(variance * 4 / times) if found.control else None,
                "p_real": chance(math.log(value), *together(denominator, fresh), "lower"),
            }
        )

    def _variance(self, names: Sequence[str]) -> float:
        """V: of the log of the mean ratio of some encoders, from draw to real draw."""
        total = sum(self.values[name] for name in names)
        shares = [self.values[name] / total if total > 0 else 1 / len(names) for name in names]
        moves = sum(share * self.moves[name] for share, name in zip(shares, names, strict=True))
        assert isinstance(moves, Tensor)
        deals, times = moves.shape
        return moves.square().sum().item() / (deals * (times - 1))


def moved(own: float, as_real: float) -> float:
    """Variance of judged draws, from the jackknife's and that of real draws as far from real."""
    return own + min(1.0, as_real / own if own > 0 else 1.0) * (as_real - own) * 2 / 3


def _without_folds(target: Target, rows: Float[Tensor, "n d"]) -> Float64[Tensor, " k"]:
    """Jackknife replicates of the distance of n rows in random order, relative to it."""
    every = torch.arange(len(rows))
    fold = every % min(PARTS, len(rows))
    draws = [every, *((fold != k).nonzero()[:, 0] for k in range(int(fold.max()) + 1))]
    whole, *without = target.distances(rows, draws).tolist()
    if not whole > 0:
        return torch.ones(len(without), dtype=torch.float64)  # the very rows of the target
    return jackknife(1.0, torch.tensor(without, dtype=torch.float64) / whole)
