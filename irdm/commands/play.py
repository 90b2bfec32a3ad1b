"""`irdm play`: a page on this machine that draws what one asks for."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from irdm.commands import Command, Device
from irdm.config import Config
from irdm.overrides import word


class Play(Config):
    """Serves a page on this machine: choose a class or type a caption, and see what the run draws of it, in one
    evaluation, and how long that took; of klein, the four-step teacher's pictures beside it, from the same noise.

      irdm play runs/digits
    """

    run: Path = word()
    """A run directory, such as runs/digits."""
    port: int = Field(default=7860, ge=0, lt=2**16)
    """Where the page is; 0 takes a free port."""
    host: str = "127.0.0.1"
    """Who can reach it: 127.0.0.1 is this machine alone, 0.0.0.0 everybody on its network; there is no password."""
    teacher: bool = True
    """Of klein: load the teacher, too, which takes as much memory again."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""


def run(given: Play, command: str) -> int:
    """Open the run, say where the page is, serve it."""
    from irdm.play import play
    from irdm.play.draw import Player

    play(Player(given.run, given.device, given.teacher), given.host, given.port)
    return 0


COMMAND = Command(Play, run)
