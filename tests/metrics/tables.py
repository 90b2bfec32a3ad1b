"""Feature tables for the tests of metrics: Gaussian rows, and a table that must be read in blocks."""

from __future__ import annotations

import torch

from irdm.conditions import Classes, Unconditional
from irdm.metrics import Real, Table
from irdm.ops.gaussian import Moments


def gaussian(n, seed, shift=0.0, dims=(("a", 8), ("b", 5))):
    """Correlated Gaussian rows for each encoder."""
    tables = {}
    for name, dim in dims:
        rng = torch.Generator().manual_seed(seed * 7 + dim)
        tables[name] = torch.randn(n, dim, generator=rng) * torch.linspace(2, 0.3, dim) + shift
    return tables


def clusters(labels, seed, apart=6.0, dims=(("a", 8), ("b", 5))):
    """Gaussian rows around a far centre for each class: most of their spread is between classes."""
    tables = {}
    for name, dim in dims:
        rng = torch.Generator().manual_seed(seed * 7 + dim)
        centres = torch.randn(int(labels.max()) + 1, dim, generator=torch.Generator().manual_seed(dim)) * apart
        tables[name] = torch.randn(len(labels), dim, generator=rng) + centres[labels]
    return tables


def table(features, conditions=None):
    """A table of tensors or stores; without conditions unless they are given."""
    return Table(features, Unconditional(len(next(iter(features.values())))) if conditions is None else conditions)


def classed(labels, seed, names="abc", **options):
    """A labelled table of clusters."""
    return table(clusters(labels, seed, **options), Classes(labels, names[: int(labels.max()) + 1]))


def real_side(train, val, held_out=()):
    """A real side of two tables, or of two dictionaries of rows."""
    train, val = (part if isinstance(part, Table) else table(part) for part in (train, val))
    moments = {
        name: Moments.of([rows[start : start + 50] for start in range(0, len(rows), 50)])
        for name, rows in train.features.items()
    }
    return Real(train, val, moments, tuple(held_out), {})


class Store:
    """Rows that refuse to be read as a whole, as a store larger than memory would."""

    def __init__(self, rows, most):
        self.rows, self.most, self.shape = rows, most, tuple(rows.shape)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        assert isinstance(index, slice) or index.dtype == torch.int64
        part = self.rows[index]
        assert len(part) <= self.most, f"read {len(part)} rows at once"
        return part


def stored(tables, most):
    return {name: Store(rows, most) for name, rows in tables.items()}


def numbers(result, prefix=""):
    """Every number of scores, or of what they hold, by its path."""
    if hasattr(result, "model_dump"):
        result = result.model_dump()
    if isinstance(result, dict):
        return {k: v for key, value in result.items() for k, v in numbers(value, f"{prefix}.{key}").items()}
    if isinstance(result, (list, tuple)):
        return {k: v for i, value in enumerate(result) for k, v in numbers(value, f"{prefix}.{i}").items()}
    return {prefix: result} if isinstance(result, (int, float)) and not isinstance(result, bool) else {}
