"""A page on this machine that draws what one asks a run for."""

from irdm.play.server import Server, play

__all__ = ["Server", "play"]
