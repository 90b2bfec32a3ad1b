"""The typed configuration of a run: one frozen class per component, unknown fields refused."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Config(BaseModel):
    """Base of every configuration: frozen, unknown fields forbidden, attribute docstrings become help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """What of this configuration decides numbers, as plain JSON: two that agree here compute the same.

        Left out are `free` fields, and fields at their default, so that a field added later changes no old identity.
        `kind` always stays.
        """
        found = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if (field.json_schema_extra or {}).get("free"):  # type: ignore[union-attr]
                continue
            if isinstance(value, Config):
                found[name] = value.identity()
            elif name == "kind" or value != field.get_default(call_default_factory=True):
                found[name] = self.model_dump(mode="json", include={name})[name]
        return found


def free(default: Any, **constraints: Any) -> Any:
    """A field that changes memory, time, or what is shown, but no number: another value resumes the same run."""
    return Field(default=default, json_schema_extra={"free": True}, **constraints)
