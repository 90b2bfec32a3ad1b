"""irdm: one-step image generators by Representation Distribution Matching (arXiv 2607.02375)."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from irdm.conditions import Classes as Classes
    from irdm.conditions import Unconditional as Unconditional
    from irdm.controller import Controller as Controller
    from irdm.distances import NystromMMD as NystromMMD
    from irdm.encoders import Battery as Battery
    from irdm.encoders import Encoder as Encoder
    from irdm.evaluation import judge as judge
    from irdm.evaluation import read_result as read_result
    from irdm.generators import Generator as Generator
    from irdm.gradcache import GradientCache as GradientCache
    from irdm.metrics import SlicedWassersteinRatio as SlicedWassersteinRatio
    from irdm.objective import Objective as Objective
    from irdm.reference import open_reference as open_reference
    from irdm.run import load_run as load_run

__version__ = "0.1.0"

# Threads that wait for work sleep instead of spinning: beside one other busy process on two cores training is then
# nearly twice as fast, and as fast as before on an idle machine. It has to be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# What most people need, imported when it is asked for: `import irdm` loads neither torch nor the rest.
_HOMES = {
    "Battery": "encoders",
    "Classes": "conditions",
    "Controller": "controller",
    "Encoder": "encoders",
    "Generator": "generators",
    "GradientCache": "gradcache",
    "NystromMMD": "distances",
    "Objective": "objective",
    "SlicedWassersteinRatio": "metrics",
    "Unconditional": "conditions",
    "judge": "evaluation",
    "load_run": "run",
    "open_reference": "reference",
    "read_result": "evaluation",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'irdm' has no attribute '{name}'; it offers {', '.join(_HOMES)}")
    return getattr(import_module(f"irdm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
