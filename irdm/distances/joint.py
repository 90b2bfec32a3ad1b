"""Which encoders have their features compared together with the conditions of the images, and what that weighs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irdm.distances.base import Distance

Joint = bool | tuple[str, ...]
"""All of them (True), none (False), or those named."""


def is_joint(joint: Joint, encoder: str) -> bool:
    """Whether the features of this encoder are."""
    return joint if isinstance(joint, bool) else encoder in joint


def sides(distances: Mapping[str, Distance[Any]]) -> dict[str, float]:
    """{encoder: factor of its weight}: where some distances are joint and others not, equal weights become half a side.

    The joint ones say whether a picture is that of its condition, the marginal ones whether it is a picture; few of the
    one should not drown in many of the other. The factors sum to the number of encoders.
    """
    joint = {name: bool(distance.tau_width) for name, distance in distances.items()}
    both, many = len({*joint.values()}) == 2, [*joint.values()]
    return {name: len(many) / (2 * many.count(side)) if both else 1.0 for name, side in joint.items()}
