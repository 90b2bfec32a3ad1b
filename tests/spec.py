"""Conditions for tests."""

from irdm.conditions import ClassSpec


def classes(count: int) -> ClassSpec:
    """`count` classes named by their numbers."""
    return ClassSpec(names=tuple(map(str, range(count))))
