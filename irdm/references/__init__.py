"""References: the real side of training and of evaluation, built once, named, hashed, on disk.

`irdm.judging` reads the half that judges, and never sees the half that trains.
"""

from irdm.references.build import ReferenceConfig, build_references
from irdm.references.opened import ReferenceSet, describe, open_reference
from irdm.references.panels import Panel, local_battery, panel_battery

__all__ = [
    "Panel",
    "ReferenceConfig",
    "ReferenceSet",
    "build_references",
    "describe",
    "local_battery",
    "open_reference",
    "panel_battery",
]
