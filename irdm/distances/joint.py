"""Which encoders have their features compared together with the conditions of the images."""

from __future__ import annotations

Joint = bool | tuple[str, ...]
"""All of them (True), none (False), or those named."""


def is_joint(joint: Joint, encoder: str) -> bool:
    """Whether the features of this encoder are."""
    return joint if isinstance(joint, bool) else encoder in joint
