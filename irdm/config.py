"""The typed configuration of a run: one frozen class per component, unknown fields refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every configuration: frozen, unknown fields forbidden, attribute docstrings become help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
