"""What a training process asks of the system: to keep its memory, and to be told of signals rather than stopped."""

from __future__ import annotations

import ctypes
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed buffers: it would return each to the kernel, and every step pay its page faults."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-8, 1)  # M_ARENA_MAX: other arenas than the first give back what they free


class Signals(list[int]):
    """The signals that came, in order."""

    def stop(self) -> NoReturn:
        """End as the first of them asks: SystemExit 143 for SIGTERM, else KeyboardInterrupt."""
        if self[:1] == [signal.SIGTERM]:
            sys.exit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Signals]:
    """Collects SIGINT and SIGTERM instead of stopping at once; a second Ctrl-C stops at once."""
    received = Signals()

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
