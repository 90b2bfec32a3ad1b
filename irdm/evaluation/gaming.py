"""Are the encoders that train being gamed? What those that do not train say beside them.

A ratio says how far images are from real to an encoder, on a scale of its own: another encoder may see the same defect
ten times as large. So the two groups are compared on a log scale, where a generator that nobody games is about as far
from real to both: it is gamed when the held-out encoders put it more than twice as far, and plainly off.
"""

from __future__ import annotations

PLAIN = 1.5
"""A held-out ratio that is plainly off."""
POWER = 2.0
"""How many times as far, on a log scale, the held-out encoders see images that game the others."""
RISE, FALL = 1.1, 0.95
"""Held out up and held in down by these factors since the best check: more than two noisy checks differ."""


def gamed(held_in: float, held_out: float) -> bool:
    """Whether images score so much worse under held-out encoders than under those that trained.

    Args:
        held_in: mean ratio under the encoders that train.
        held_out: mean ratio under the others.
    """
    return held_out > max(PLAIN, held_in**POWER)


def check_held_out(ratios: dict[str, float], history: list[dict]) -> dict:
    """Append a quick check to the history, with its alarm.

    The alarm rings when in this check and the one before the encoders that train are `gamed`, or are being: held-out is
    a tenth above its best and held-in a twentieth below what it was there.
    """
    entry = {**ratios, "alarm": False}
    known = [e for e in (*history, entry) if "held_in" in e and "held_out" in e]
    entry["alarm"] = len(known) > 1 and all(_suspect(known[:end]) for end in (len(known) - 1, len(known)))
    history.append(entry)
    return entry


def _suspect(known: list[dict]) -> bool:
    now, best = known[-1], min(known, key=lambda e: e["held_out"])
    parted = now["held_out"] > RISE * best["held_out"] and now["held_in"] < FALL * best["held_in"]
    return parted or gamed(now["held_in"], now["held_out"])
