"""One-step generators: one file per network, one line in `AnyGenerator`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from irdm.generators.base import Generator
from irdm.generators.conv import ConvConfig, ConvGenerator
from irdm.generators.klein import Klein, KleinConfig
from irdm.generators.mlp import MLPConfig, MLPGenerator
from irdm.generators.pmf import PMF_FAMILIES, PixelMeanFlow, PixelMeanFlowConfig
from irdm.generators.pmf_weights import load_weights, save_weights
from irdm.generators.relu_mlp import ReLUMLP, ReLUMLPConfig

AnyGenerator = Annotated[
    MLPConfig | ConvConfig | ReLUMLPConfig | PixelMeanFlowConfig | KleinConfig, Field(discriminator="kind")
]

__all__ = [
    "PMF_FAMILIES",
    "AnyGenerator",
    "ConvConfig",
    "ConvGenerator",
    "Generator",
    "Klein",
    "KleinConfig",
    "MLPConfig",
    "MLPGenerator",
    "PixelMeanFlow",
    "PixelMeanFlowConfig",
    "ReLUMLP",
    "ReLUMLPConfig",
    "load_weights",
    "save_weights",
]
