"""Frozen feature extractors and the battery that groups them: one file per kind, one table."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from irdm.encoders.base import Battery, Encoder
from irdm.encoders.identity import IdentityBatteryConfig
from irdm.encoders.local import LocalBatteryConfig
from irdm.encoders.panel import PanelBatteryConfig

BATTERIES = {"local": LocalBatteryConfig, "identity": IdentityBatteryConfig, "panel": PanelBatteryConfig}
AnyBattery = Annotated[LocalBatteryConfig | IdentityBatteryConfig | PanelBatteryConfig, Field(discriminator="kind")]

__all__ = [
    "BATTERIES",
    "AnyBattery",
    "Battery",
    "Encoder",
    "IdentityBatteryConfig",
    "LocalBatteryConfig",
    "PanelBatteryConfig",
]
