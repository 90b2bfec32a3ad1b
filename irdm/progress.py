"""Lines for people during a long step: how much is done, how fast it goes, and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY = 5.0  # seconds between two lines

Say = Callable[[str], None]
"""Receives a line of text now and then."""


def silent(text: str) -> None:
    """Says nothing."""


def once(say: Say) -> Say:
    """`say`, which tells a line once: what is known before a long step and again after it, a reader needs once."""
    told: set[str] = set()

    def tell(text: str) -> None:
        if text not in told:
            told.add(text)
            say(text)

    return tell


class Meter:
    """Counts what is done of a total, and says so every few seconds: a short step says nothing.

    meter = Meter("features of train", 4000, "images", say)
    meter(256)      # "features of train: 256 of 4000 images, 40 images/s, 94 s left"
    """

    def __init__(self, what: str, total: int, unit: str, say: Say | None = None) -> None:
        self._what, self._total, self._unit, self._say = what, total, unit, say or silent
        self._done, self._began = 0, time.monotonic()
        self._said = self._began

    def __call__(self, done: int = 1) -> None:
        """So many more are done."""
        self._done += done
        now = time.monotonic()
        if now - self._said >= EVERY and self._done < self._total:
            self._said, rate = now, self._done / (now - self._began)
            left = (self._total - self._done) / rate
            speed = f"{rate:.0f} {self._unit}/s" if rate >= 10 else f"{rate:.2g} {self._unit}/s"
            self._say(f"{self._what}: {self._done} of {self._total} {self._unit}, {speed}, {duration(left)} left")


def duration(seconds: float) -> str:
    """So many seconds in words, such as 2.5 hours, to two digits."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.2g} {unit}"
    return f"{seconds:.2g} seconds"
