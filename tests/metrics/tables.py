"""Feature tables for the tests of metrics: Gaussian rows, and a table that must be read in blocks."""

from __future__ import annotations

import torch


def gaussian(n, seed, shift=0.0, dims=(("a", 8), ("b", 5))):
    """Correlated Gaussian rows for each encoder."""
    tables = {}
    for name, dim in dims:
        rng = torch.Generator().manual_seed(seed * 7 + dim)
        tables[name] = torch.randn(n, dim, generator=rng) * torch.linspace(2, 0.3, dim) + shift
    return tables


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
    """Every number of a nested result by its path."""
    if isinstance(result, dict):
        return {k: v for key, value in result.items() for k, v in numbers(value, f"{prefix}.{key}").items()}
    if isinstance(result, list):
        return {k: v for i, value in enumerate(result) for k, v in numbers(value, f"{prefix}.{i}").items()}
    return {prefix: result} if isinstance(result, (int, float)) else {}
