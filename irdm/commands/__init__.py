"""The commands, one file each: a configuration of what can be typed, and the function that does it.

A command may have actions, as `irdm reference build` and `irdm reference show`; each action is a command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from irdm.config import Config

Device = Literal["auto", "cpu", "cuda"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Command:
    """`run(options, command)` gets the options and the line that was typed, and returns the exit code."""

    options: type[Config]
    run: Callable[[Any, str], int]
    more: Callable[[list[str], dict[str, list[str]]], str] = lambda words, options: ""
    """More help than that of the options, from the words and options that stand beside --help."""


def _encodable(path: Path) -> Path:
    """Refuses a name that is not UTF-8, which the libraries that write below cannot open again."""
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise ValueError("should be a name in UTF-8, since files are written there") from None
    return path


Out = Annotated[Path, AfterValidator(_encodable)]

COMMANDS = {
    "train": ("PRESET [--field value ...]", "train, evaluate, write a report; the same command again resumes"),
    "eval": ("SOURCE [--against REAL]", "judge a run, a folder or an archive of images against real ones"),
    "reference": ("build|import|show", "real images under every encoder: what training and eval compare with"),
    "compare": ("A B", "the paired difference of two evaluations, with its interval"),
    "geneval": ("prompts|render|score|golden", "images of GenEval's prompts, drawn by a run and judged by a scorer"),
    "render": ("PROMPTS --model DIR --out DIR", "pictures of prompts by the four-step teacher, the best of several"),
    "sample": ("RUN", "draw images: a picture, files or arrays"),
    "play": ("RUN", "a page on this machine: ask a run for pictures, see them drawn"),
    "contexts": ("PRESET --out DIR", "what klein reads of a run's captions, encoded once"),
    "export": ("RUN --to FORMAT", "a trained klein for diffusers, Black Forest Labs' code or ComfyUI"),
    "report": ("RUN", "write RUN/report.html from what a run or an evaluation holds"),
    "check": ("PRESET", "what a preset needs, and whether it is there"),
    "encoders": ("list|check|fetch [NAME]", "the weights of the pretrained encoders"),
    "experiment": ("NAME", "repeat a study of the paper at small scale; --list names them"),
}
"""How each is typed, and what it does: irdm/commands/NAME.py, with a `COMMAND`, or a table of them, its actions."""
