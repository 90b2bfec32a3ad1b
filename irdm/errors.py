"""What to tell a user of an error, in one line; a bug keeps its traceback."""

from __future__ import annotations

import atexit
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from pydantic import ValidationError

from irdm.fields import plain

GRACE = 3.0  # seconds for the rank that failed first to say why; torchrun then ends the others
MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "storage size calculation overflowed")
PEERS = ("connection closed by peer", "connection reset by peer", "nccl", "gloo", "broken pipe", "recvvalue failed")


def explained(error: Exception) -> str | None:
    """What to tell a user of an error; None for a bug."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _says(text, MEMORY)):
        asked = re.search(r"allocate ([\d.]+ ?[A-Za-z]+)", text)
        return (
            f"out of memory{f' (asked for {asked[1]})' if asked else ''}: lower --micro-batch, or ask for a smaller "
            "network or fewer images"
        )
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read"
    if name.startswith("Dist") or (isinstance(error, RuntimeError) and _says(text, PEERS)):
        return "another rank failed or was killed; its own message says why"
    if name == "BrokenProcessPool":
        return "a worker was killed, perhaps for want of memory; lower --workers and repeat the command"
    if isinstance(error, ValidationError):
        return plain(error)
    if isinstance(error, UnicodeError):
        return f"a name or a text is not UTF-8 ({error})"
    return text or name if isinstance(error, ValueError | OSError | FloatingPointError) else None


def _says(text: str, phrases: Sequence[str]) -> bool:
    return any(phrase in text.lower() for phrase in phrases)


def rank() -> int:
    """This process among torchrun's; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def fail(message: object, code: int, wait: bool = False) -> int:
    """Print the one line. Under torchrun every rank may fail of the same thing: those after the first give it time."""
    if wait:
        time.sleep(GRACE)
    print(f"irdm: error: {message}", file=sys.stderr)
    return code


def leave(code: int) -> NoReturn:
    """End; one of several processes without the clearing of its memory, where a thread of gloo aborts what it meets.

    Divided weights keep their group, and with it such threads, to the very end.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
