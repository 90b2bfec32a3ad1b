"""What training minimises: one file per distance, one configuration of each in `AnyDistance`.

NystromMMD(landmarks=256).fit(real)(fake)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from irdm.distances.base import Distance
from irdm.distances.config import DistanceConfig
from irdm.distances.drifting import Drifting, DriftingConfig
from irdm.distances.exact import ExactMMD, ExactMMDConfig
from irdm.distances.frechet import Frechet, FrechetConfig
from irdm.distances.joint import Joint, is_joint
from irdm.distances.nystrom import NystromMMD, NystromMMDConfig
from irdm.distances.rff import RFFMMD, RFFMMDConfig
from irdm.distances.sliced import SlicedWasserstein, SlicedWassersteinConfig

AnyDistance = Annotated[
    NystromMMDConfig | ExactMMDConfig | RFFMMDConfig | FrechetConfig | SlicedWassersteinConfig | DriftingConfig,
    Field(discriminator="kind"),
]
"""The configuration of any distance, told apart by its `kind`."""

__all__ = [
    "RFFMMD",
    "AnyDistance",
    "Distance",
    "DistanceConfig",
    "Drifting",
    "DriftingConfig",
    "ExactMMD",
    "ExactMMDConfig",
    "Frechet",
    "FrechetConfig",
    "Joint",
    "NystromMMD",
    "NystromMMDConfig",
    "RFFMMDConfig",
    "SlicedWasserstein",
    "SlicedWassersteinConfig",
    "is_joint",
]
