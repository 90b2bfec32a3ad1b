"""The command line: finds the command, imports nothing but that, and turns failures into one line and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from irdm import __version__
from irdm.commands import COMMANDS
from irdm.errors import explained, fail, leave, rank
from irdm.fields import UsageError, nearest
from irdm.overrides import parse, split_options

if TYPE_CHECKING:
    from irdm.commands import Command


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
        return fail(error, 2, wait=rank() > 0)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130 if rank() else fail("interrupted", 130)
    except Exception as error:
        message = explained(error)
        if message is None or os.environ.get("IRDM_TRACEBACK"):
            raise
        return fail(message, 1, wait=rank() > 0 or message.lower().startswith("another rank"))


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        from irdm.commands.help import overview

        print(overview())
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
            known = ", ".join(command)
            found = f"'{words[0]}'{nearest(words[0], command)}" if words else f"missing; choose from {known}"
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


if __name__ == "__main__":
    leave(main())
