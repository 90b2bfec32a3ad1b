"""Ratio scores against a real side that is kept: SW_r14 and MMDr14 by the published protocol (Feng et al., 2026).

    r_e = distance(generated, train) / distance(val, train),    the score is the arithmetic mean over encoders

with N = 16384 rows of each, 1024 shared directions (`sw_ratio`) or 4096 random Fourier features of seed 99999
(`mmd_ratio`). A bank holds the train rows as sorted projections or mean embeddings, and the distances of fresh real
draws of N rows and of N/2, N/4, ..., since a distance depends on the number of rows: a sample with fewer than N is
compared at the next size below its own. That is less precise, and nearer to 1: small draws of any two distributions
look alike. Every draw is random and seeded: files may come in the order of their classes.

Letters: n rows of a draw, d features, s sizes, b real draws, e encoders, k folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from irdm.config import Config
from irdm.metrics import mmd, sliced_wasserstein
from irdm.metrics.base import MIN_ROWS, EvaluationConfig, Picked, Tables, check_table, finite_blocks, matched, panel
from irdm.metrics.intervals import FOLDS, jackknife
from irdm.metrics.ratio import Target, summarise
from irdm.ops.rows import Rows
from irdm.ops.sampling import generator_for

FRESH_FIELDS = ("draws", "denominator", "control")
MOST_DRAWS = 8  # disjoint draws behind a denominator: more would take longer than they are worth
Kind = Literal["sw_ratio", "mmd_ratio"]


@dataclass(frozen=True)
class _Method:
    """How a kind of bank is built, saved and read."""

    label: str
    target: type[sliced_wasserstein.SlicedTarget] | type[mmd.FourierTarget]
    fields: tuple[str, ...]
    coarse: int


METHODS: dict[Kind, _Method] = {
    "sw_ratio": _Method(
        "SW_r", sliced_wasserstein.SlicedTarget, ("center", "directions", "sorted"), sliced_wasserstein.COARSE
    ),
    "mmd_ratio": _Method("MMDr", mmd.FourierTarget, ("center", "frequencies", "phases", "embedding"), mmd.COARSE),
}


class RatioProtocol(Config):
    """What decides a ratio beside the rows themselves. Scores of unlike protocols are not comparable."""

    kind: Kind
    """Which distance."""
    encoders: tuple[str, ...]
    """The whole panel, in order."""
    held_out: tuple[str, ...]
    """Encoders that did not train the generator."""
    rows: int
    """Rows of a full draw: 16384 in the published protocol, fewer where there are fewer real ones."""
    count: int
    """Directions or random Fourier features."""
    draw_seed: int
    """Seed of the directions or of the random Fourier features."""
    seed: int
    """Seed of every draw of rows."""
    resamples: int
    """Real draws behind the interval."""
    fresh_rows: int
    """Fresh real rows that those draws, the denominators and the controls are taken from."""


@dataclass(frozen=True)
class Fresh:
    """Distances to train of fresh real draws under one encoder, at each size.

    `draws` overlap, and say how much the distance of a draw moves. `denominator` and `control` are means over as many
    disjoint draws as the first and the second half of the fresh rows hold.
    """

    draws: Float64[Tensor, "s b"]
    denominator: Float64[Tensor, " s"]
    control: Float64[Tensor, " s"]


class RatioBank:
    """The real side of a ratio: a target and the distances of fresh real draws for each encoder."""

    def __init__(self, protocol: RatioProtocol, targets: Mapping[str, Target], fresh: Mapping[str, Fresh]):
        self.protocol, self.targets, self.fresh = protocol, dict(targets), dict(fresh)
        self.sizes = draw_sizes(protocol.rows)

    @classmethod
    def build(
        cls, kind: Kind, train: Tables, fresh: Tables, held_out: Sequence[str], config: EvaluationConfig
    ) -> RatioBank:
        """Measure the real side, an encoder at a time: memory for a draw of train and at most four of fresh rows.

        Args:
            kind: which distance.
            train: feature tables of the train images; at most `config.rows` rows are taken, at random.
            fresh: feature tables of real images that are not in train. The first half, in a random order, makes the
                denominators, the second the real control. A full draw is at most as long as a half.
            held_out: encoders that did not train the generator.
            config: rows, directions or rff_features and rff_seed, resamples and seed are read.

        Raises:
            ValueError: naming an encoder that is missing, not finite, constant, or with too few rows: 8 of train, 16 of
                fresh.
        """
        names, _ = panel(list(train), train, False)
        panel(names, fresh, False)
        if unknown := set(held_out) - set(names):
            raise ValueError(f"held_out names {sorted(unknown)}, which are not in the panel {names}.")
        pool = len(fresh[names[0]])
        rows = min(config.rows, len(train[names[0]]), pool // 2)
        if rows < MIN_ROWS:
            raise ValueError(
                f"Got {len(train[names[0]])} train and {pool} fresh real rows; a ratio needs at least {MIN_ROWS} and "
                f"{2 * MIN_ROWS}, and thousands to mean something."
            )
        sliced = kind == "sw_ratio"
        protocol = RatioProtocol(
            kind=kind,
            encoders=tuple(names),
            held_out=tuple(name for name in names if name in held_out),
            rows=rows,
            count=config.directions if sliced else config.rff_features,
            draw_seed=config.seed if sliced else config.rff_seed,
            seed=config.seed,
            resamples=config.resamples,
            fresh_rows=min(pool, 4 * rows),
        )
        targets, found = {}, {}
        for name in names:
            check_table(name, train[name])
            check_table(name, fresh[name], train[name].shape[1])
            drawn = _read(name, matched(train[name], config.rows, config.seed))
            targets[name] = METHODS[kind].target.of(name, drawn, protocol.count, protocol.draw_seed)
            found[name] = _measure(
                targets[name], _read(name, matched(fresh[name], protocol.fresh_rows, config.seed)), protocol
            )
        return cls(protocol, targets, found)

    def score(self, generated: Tables, *, partial: bool = False) -> dict:
        """The ratio by encoder and its means over all, held-in and held-out encoders, lower is better.

        Args:
            generated: feature tables of the generator, 8 rows or more. They make as many disjoint random draws as they
                can; what remains is not used.
            partial: judge the encoders that are there; the result names the `missing` ones.

        Returns:
            `name` (SW_r14: the number is that of the encoders), `direction`, `missing`, the keys of
            `irdm.metrics.ratio.summarise` (replicates by the jackknife), `rows` {given, used, draw, full}, a `warning`
            when a draw is not full, and `protocol`.

        Raises:
            ValueError: naming an encoder that is missing, of another width, or not finite; for too few rows.
        """
        protocol, method = self.protocol, METHODS[self.protocol.kind]
        names, missing = panel(protocol.encoders, generated, partial)
        given = len(generated[names[0]])
        size = next((size for size in self.sizes if size <= given), None)
        if size is None:
            raise ValueError(f"Got {given} generated rows; a ratio needs at least {self.sizes[-1]}, better thousands.")
        order = torch.randperm(given, generator=generator_for("metrics", "generated", protocol.seed))
        draws = order[: given // size * size].split(size)
        distances, replicates = [], []
        for name in names:
            check_table(name, generated[name], len(self.targets[name].center))
            tables = (_read(name, Picked(generated[name], rows)) for rows in draws)
            found = [_with_folds(self.targets[name], rows, method.coarse) for rows in tables]
            distances.append(torch.tensor([distance for distance, _ in found], dtype=torch.float64))
            replicates.append(torch.stack([relative for _, relative in found]).mean(0))
        rung = self.sizes.index(size)
        real = [self.fresh[name] for name in names]
        denominator = torch.stack([fresh.denominator[rung] for fresh in real])
        means = torch.stack(distances).mean(1) / denominator
        summary = summarise(
            names,
            protocol.held_out,
            torch.stack(distances, 1),
            torch.stack([fresh.draws[rung] for fresh in real], 1),
            size / protocol.fresh_rows,
            denominator=denominator,
            control=torch.stack([fresh.control[rung] for fresh in real]),
            fresh=_disjoint(protocol, size),
            replicates=means * torch.stack(replicates, 1),
        )
        head = {"name": f"{method.label}{len(names)}", "direction": "lower", "missing": missing}
        few = (
            f"{given} generated rows: compared {size} at a time instead of {protocol.rows}, so less precisely, and "
            "nearer to 1 than full draws would be."
        )
        return (
            head
            | summary
            | {
                "rows": {"given": given, "used": len(draws) * size, "draw": size, "full": protocol.rows},
                "warning": few if size < protocol.rows else None,
                "protocol": protocol.model_dump(mode="json"),
            }
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor by `encoder.field`, for a safetensors file; the protocol goes beside it as JSON."""
        fields = METHODS[self.protocol.kind].fields
        return {
            f"{name}.{field}": getattr(owner[name], field)
            for owner, own in ((self.targets, fields), (self.fresh, FRESH_FIELDS))
            for name in self.protocol.encoders
            for field in own
        }

    @classmethod
    def load(cls, protocol: RatioProtocol, tensors: Mapping[str, Tensor]) -> RatioBank:
        """The bank that `state_dict` gave, on the device of the tensors. Raises ValueError for other tensors."""
        method = METHODS[protocol.kind]
        wanted = {f"{name}.{field}" for name in protocol.encoders for field in (*method.fields, *FRESH_FIELDS)}
        if wanted != set(tensors):
            raise ValueError(
                f"The tensors are not those of this {protocol.kind} bank: without {sorted(wanted - set(tensors))}, and "
                f"with unknown {sorted(set(tensors) - wanted)}. Build the reference again."
            )

        def read(kind, fields: tuple[str, ...]) -> dict:
            return {name: kind(**{f: tensors[f"{name}.{f}"] for f in fields}) for name in protocol.encoders}

        return cls(protocol, read(method.target, method.fields), read(Fresh, FRESH_FIELDS))


def draw_sizes(rows: int) -> list[int]:
    """The sizes that fresh real draws are measured at: rows, rows/2, rows/4, ..., down to 8."""
    return [rows >> halvings for halvings in range(rows.bit_length()) if rows >> halvings >= MIN_ROWS]


def _disjoint(protocol: RatioProtocol, size: int) -> int:
    """Disjoint draws of a size behind a denominator, and behind a control."""
    return min(protocol.fresh_rows // 2 // size, MOST_DRAWS)


def _read(name: str, table: Rows) -> Float[Tensor, "n d"]:
    return torch.cat(list(finite_blocks(name, table)))


def _measure(target: Target, rows: Float[Tensor, "n d"], protocol: RatioProtocol) -> Fresh:
    """Distances of random draws of fresh real rows, the same rows whatever the encoder."""
    rows = rows[torch.randperm(len(rows), generator=generator_for("metrics", "fresh", protocol.seed)).to(rows.device)]
    coarse = METHODS[protocol.kind].coarse
    draws, means = [], []
    for size in draw_sizes(protocol.rows):
        generator = generator_for("metrics", "fresh draws", protocol.seed, size)
        chosen = (torch.randperm(len(rows), generator=generator)[:size] for _ in range(protocol.resamples))
        draws.append([target.distance(rows[index.to(rows.device)], coarse) for index in chosen])
        halves = (rows[start : start + _disjoint(protocol, size) * size] for start in (0, len(rows) // 2))
        means.append([sum(target.distance(part) for part in half.split(size)) for half in halves])
        means[-1] = [total / _disjoint(protocol, size) for total in means[-1]]
    denominator, control = torch.tensor(means, dtype=torch.float64).T.contiguous()
    return Fresh(torch.tensor(draws, dtype=torch.float64), denominator, control)


def _with_folds(target: Target, rows: Float[Tensor, "n d"], coarse: int) -> tuple[float, Float64[Tensor, " k"]]:
    """The distance of a draw in random order, and its jackknife replicates relative to it, from coarse distances."""
    fold = torch.arange(len(rows), device=rows.device) % min(FOLDS, len(rows))
    without = [target.distance(rows[fold != k], coarse) for k in range(int(fold.max()) + 1)]
    relative = torch.tensor(without, dtype=torch.float64) / target.distance(rows, coarse)
    return target.distance(rows), jackknife(1.0, relative)
