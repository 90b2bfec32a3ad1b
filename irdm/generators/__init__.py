"""One-step generators: one file per network, one table."""

from __future__ import annotations

from irdm.generators.mlp import MLPConfig, MLPGenerator

GENERATORS = {"mlp": MLPConfig}
AnyGenerator = MLPConfig

__all__ = ["GENERATORS", "AnyGenerator", "MLPConfig", "MLPGenerator"]
