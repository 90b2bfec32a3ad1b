"""`irdm train`: a preset with changed fields, or a configuration in a file, trained to its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from irdm.commands import Command, Out
from irdm.config import Config
from irdm.fields import UsageError, nearest, read_config
from irdm.overrides import Options, assign, others, override, parse, word

if TYPE_CHECKING:
    from irdm.presets import RunConfig
    from irdm.teacher import TeacherConfig


TEACHER = "world-teacher"


class Train(Config):
    """Trains a one-step generator, evaluates it, and writes a run directory with the weights, samples, result.json and
    report.html. The same command again resumes a run that was interrupted.

    Any field of the preset can be set, nested ones with dots; `irdm train PRESET --help` lists them:
      irdm train digits --rollout 4096 --distance.kind exact-mmd --battery.steps 100

    `irdm train world-teacher` trains the teacher of the captioned world in place of a generator.
    """

    preset: str | None = word(None)
    """What to start from; `irdm --help` lists the presets."""
    config: Path | None = None
    """Start from a JSON configuration, such as the config.json of a run, in place of a preset."""
    out: Out | None = None
    """The run directory; unset, runs/PRESET."""
    limit: int | None = None
    """A smoke run: N images, a rollout of N, two steps, into runs/PRESET-limit-N."""
    dry_run: bool = False
    """Print the configuration as JSON and stop."""
    fields: Options = others()
    """Any field of the run."""


def run(given: Train, command: str) -> int:
    """Train, then print the scores."""
    if given.preset == TEACHER:
        return _teach(given)
    config = configured(given.preset, given.config, given.fields, given.limit)
    if given.dry_run:
        print(config.model_dump_json(indent=1))
        return 0
    from irdm.train import train

    out = given.out or Path("runs") / config.preset
    result = train(config, out, command=command)
    if result is not None:
        from irdm.commands.scores import score_table

        print(f"\n{score_table(result)}\n\nreport: {out / 'report.html'}")
    return 0


def _teach(given: Train) -> int:
    """The teacher of the captioned world, which is trained otherwise."""
    from irdm.teacher import train_teacher

    if given.config is not None or given.limit is not None:
        raise UsageError(f"--config and --limit are for presets, and {TEACHER} is none; leave them out")
    config = override(_teacher(), given.fields)
    if given.dry_run:
        print(config.model_dump_json(indent=1))
        return 0
    out = given.out or Path("runs") / TEACHER
    train_teacher(config, out)
    print(f"\nthe teacher: --generator.model {out / 'klein'}")
    return 0


def _teacher() -> TeacherConfig:
    from irdm.teacher.config import TeacherConfig

    return TeacherConfig()


def configured(preset: str | None, file: Path | None, fields: Options, limit: int | None) -> RunConfig:
    """The configuration that was typed. Raises UsageError for what does not fit."""
    from irdm.presets import limited

    config = override(start(preset, file), fields)
    if not getattr(config.battery, "held_in", True):
        raise UsageError("--battery.held-in is []: at least one encoder must train the generator")
    if limit is None:
        return config
    try:
        return limited(config, limit)
    except ValueError as error:
        raise UsageError(f"--limit is {limit}: {error}") from None


def start(preset: str | None, file: Path | None) -> RunConfig:
    """What the fields change: a preset, or the configuration in a file."""
    from irdm.presets import PRESETS, RunConfig

    if preset is not None and file is not None:
        raise UsageError(f"give the preset {preset} or --config {file}, not both")
    if file is not None:
        return read_config(RunConfig, file)
    if preset is None:
        raise UsageError(f"PRESET is missing; choose from {', '.join(PRESETS)}, or give --config FILE")
    if preset not in PRESETS:
        raise UsageError(f"there is no preset '{preset}'{nearest(preset, PRESETS)}")
    return PRESETS[preset]()


def every_field(words: list[str], options: dict[str, list[str]]) -> str:
    """The help of a preset: every field with its type and its value here."""
    if not words and "config" not in options:
        return ""
    from irdm.commands.help import describe

    given = parse(Train, [*words, *(token for name, values in options.items() for token in (f"--{name}", *values))])
    config = _teacher() if given.preset == TEACHER else start(given.preset, given.config)
    data: Mapping = assign(config, given.fields)
    return (
        "Every field, its type and its value here; free ones change memory, time or display, but no number.\n\n"
        + describe(type(config), data)
    )


COMMAND = Command(Train, run, every_field)
