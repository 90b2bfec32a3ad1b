"""What the configuration of every distance has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from irdm.config import Config

if TYPE_CHECKING:
    from irdm.distances.base import Distance

Factor = Annotated[float, Field(ge=1e-6, le=1e6)]
"""A positive number that leaves room for squares and their ratios in float32."""


class DistanceConfig(Config, ABC):
    """What the configuration of every distance has in common."""

    condition_bandwidth: Factor | None = None
    """Bandwidth s of the condition tau in its own units, when there is one; None means 1."""

    residual: bool = False
    """Compare conditions and what they do not tell of the features, by regression. False: the features (the paper)."""

    @abstractmethod
    def build(self) -> Distance[Any]:
        """A distance without a reference: fit it, or load one."""
