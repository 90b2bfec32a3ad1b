"""Frozen feature extractors and the battery that groups them: one file per kind, one table."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from irdm.encoders.base import Battery, Encoder
from irdm.encoders.identity import IdentityBatteryConfig
from irdm.encoders.local import FittedBatteryConfig, LiteBatteryConfig, LiteLocalBatteryConfig, LocalBatteryConfig
from irdm.encoders.panel import PanelBatteryConfig

FITTED = {"local": LocalBatteryConfig, "lite": LiteBatteryConfig, "lite+local": LiteLocalBatteryConfig}
BATTERIES = {**FITTED, "identity": IdentityBatteryConfig, "panel": PanelBatteryConfig}
AnyBattery = Annotated[
    LocalBatteryConfig | LiteBatteryConfig | LiteLocalBatteryConfig | IdentityBatteryConfig | PanelBatteryConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "BATTERIES",
    "FITTED",
    "AnyBattery",
    "Battery",
    "Encoder",
    "FittedBatteryConfig",
    "IdentityBatteryConfig",
    "LiteBatteryConfig",
    "LiteLocalBatteryConfig",
    "LocalBatteryConfig",
    "PanelBatteryConfig",
]
