"""Moved to irdm.conditions; this name goes when everybody imports that."""

from irdm.conditions import *  # noqa: F403
