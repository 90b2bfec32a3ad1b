"""References: the real side of training and of evaluation, in memory or built once, named and hashed, on disk.

`irdm.store` reads the half that judges, and never sees the half that trains.
"""

from irdm.reference.build import ReferenceConfig, build_reference, plan_of
from irdm.reference.fit import Reference, fit_distance, fit_reference
from irdm.reference.opened import OpenReference, describe, open_reference

__all__ = [
    "OpenReference",
    "Reference",
    "ReferenceConfig",
    "build_reference",
    "describe",
    "fit_distance",
    "fit_reference",
    "open_reference",
    "plan_of",
]
