"""Frozen feature extractors and the battery that groups them."""

from __future__ import annotations

from irdm.encoders.base import Battery, Encoder
from irdm.encoders.local import LocalBatteryConfig

BATTERIES = {"local": LocalBatteryConfig}
AnyBattery = LocalBatteryConfig

__all__ = ["BATTERIES", "AnyBattery", "Battery", "Encoder", "LocalBatteryConfig"]
