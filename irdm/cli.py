"""The command line: finds the command, imports nothing but that, and turns failures into one line and an exit code."""

from __future__ import annotations

import ast
import importlib
import io
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from irdm import __version__
from irdm.fields import UsageError, nearest, plain
from irdm.overrides import parse, split_options

if TYPE_CHECKING:
    from irdm.commands import Command

COMMANDS = {
    "train": ("PRESET [--field value ...]", "train, evaluate, write a report; the same command again resumes"),
    "eval": ("SOURCE [--reference REF]", "judge a run, a folder or an archive of images against real ones"),
    "reference": ("build|show NAME", "real images under every encoder: what training and eval compare with"),
    "compare": ("A B", "the paired difference of two evaluations, with its interval"),
    "sample": ("RUN", "draw images: a picture, files or arrays"),
    "report": ("RUN", "write RUN/report.html from what a run or an evaluation holds"),
    "check": ("PRESET", "what a preset needs, and whether it is there"),
    "encoders": ("list|check|fetch [NAME]", "the weights of the pretrained encoders"),
    "experiment": ("NAME", "repeat a study of the paper at small scale; --list names them"),
}
"""Each is irdm/commands/NAME.py, with a `COMMAND`: how it is typed, and what it does."""

USAGE = """\
irdm {version}: one-step image generators by Representation Distribution Matching

{commands}

Presets:
{presets}

`irdm COMMAND --help` explains a command; `irdm train PRESET --help` lists every field of the preset.
Exit codes: 0 done, 1 failed, 2 typed wrongly, 130 interrupted. IRDM_TRACEBACK=1 shows where a failure came from."""

GRACE = 3.0  # seconds for the rank that failed first to say why; torchrun then ends the others
MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "storage size calculation overflowed")
PEERS = ("connection closed by peer", "connection reset by peer", "nccl", "gloo", "broken pipe", "recvvalue failed")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 typed wrongly, 130 interrupted.

    What a user can mend is one line. Anything else is a bug, and keeps its traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a name that cannot be printed is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(argv)
    except UsageError as error:
        return _fail(error, 2, wait=_rank() > 0)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130 if _rank() else _fail("interrupted", 130)
    except Exception as error:
        message = explained(error)
        if message is None or os.environ.get("IRDM_TRACEBACK"):
            raise
        return _fail(message, 1, wait=_rank() > 0 or message.lower().startswith("another rank"))


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


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  irdm {f'{name} {words}':34} {says}" for name, (words, says) in COMMANDS.items()]
        print(USAGE.format(version=__version__, commands="\n".join(lines), presets=preset_list()))
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    name, tokens = argv[0], argv[1:]
    if name not in COMMANDS:
        raise UsageError(f"there is no command '{name}'{nearest(name, COMMANDS)}")
    command: Command | dict[str, Command] = importlib.import_module(f"irdm.commands.{name}").COMMAND
    words, options = split_options(tokens)
    if isinstance(command, dict):
        if not words and "help" in options:
            print("\n\n".join(_help(f"{name} {action}", command[action], [], {}) for action in command))
            return 0
        if not words or words[0] not in command:
            found = (
                f"'{words[0]}'{nearest(words[0], command)}" if words else f"missing; choose from {', '.join(command)}"
            )
            raise UsageError(f"the action of irdm {name} is {found}")
        name, tokens, words, command = f"{name} {words[0]}", tokens[1:], words[1:], command[words[0]]
    if "help" in options:
        del options["help"]
        print(_help(name, command, words, options))
        return 0
    return command.run(parse(command.options, tokens), shlex.join(["irdm", *argv]))


def _help(name: str, command: Command, words: list[str], options: dict[str, list[str]]) -> str:
    from irdm.commands.help import explain

    more = command.more(words, options)
    return explain(name, command.options) + (f"\n\n{more}" if more else "")


def preset_list() -> str:
    """Each preset with the first line of its docstring, read from the source: importing it would import torch."""
    tree = ast.parse(Path(__file__).with_name("presets.py").read_text())
    lines = {f.name: (ast.get_docstring(f) or "").split("\n")[0] for f in tree.body if isinstance(f, ast.FunctionDef)}
    table = next(s.value for s in tree.body if isinstance(s, ast.AnnAssign) and ast.unparse(s.target) == "PRESETS")
    assert isinstance(table, ast.Dict)
    presets = ast.unparse(table).strip("{}").replace("'", "").split(", ")
    return "\n".join(f"  {name:14} {lines[function]}" for name, function in (p.split(": ") for p in presets))


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _says(text: str, phrases: Sequence[str]) -> bool:
    return any(phrase in text.lower() for phrase in phrases)


def _fail(message: object, code: int, wait: bool = False) -> int:
    """Print the one line. Under torchrun every rank may fail of the same thing: those after the first give it time."""
    if wait:
        time.sleep(GRACE)
    print(f"irdm: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
