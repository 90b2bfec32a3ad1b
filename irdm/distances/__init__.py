"""What training minimises: one file per distance, one line per kind in the table."""

from __future__ import annotations

from irdm.distances.base import Distance, DistanceConfig
from irdm.distances.nystrom import NystromMMD, NystromMMDConfig

DISTANCES: dict[str, type[Distance]] = {
    "nystrom-mmd": NystromMMD,
}

AnyDistance = NystromMMDConfig

__all__ = ["DISTANCES", "AnyDistance", "Distance", "DistanceConfig", "NystromMMD", "NystromMMDConfig"]
