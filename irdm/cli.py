"""The command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irdm import __version__
from irdm.overrides import UsageError, assign, describe, nearest, override, read_config, split_options

if TYPE_CHECKING:
    from irdm.presets import RunConfig

USAGE = """\
irdm {version}: one-step image generators by Representation Distribution Matching

  irdm train PRESET [--field value ...]   train, evaluate, write a report; the same command again resumes
  irdm eval RUN                           judge a run again and rewrite its result.json and report
  irdm eval SOURCE --reference REF        judge a run, a folder or an archive of images against a reference
  irdm reference build|show NAME          real images under every encoder: what training and eval compare with
  irdm compare A B                        the paired difference of two evaluations, with its interval
  irdm sample RUN                         draw images: a picture, files or arrays
  irdm report RUN                         write RUN/report.html from what the run directory holds
  irdm check PRESET                       what a preset needs, and whether it is there
  irdm encoders list|check|fetch [NAME]   the weights of the pretrained encoders
  irdm experiment NAME                    repeat a study of the paper at small scale; --list names them

Presets:
{presets}

`irdm COMMAND --help` explains a command; `irdm train PRESET --help` lists every field of the preset."""

TRAIN = """\
irdm train PRESET [--field value ...] [--out DIR] [--limit N] [--dry-run]
irdm train --config FILE [--field value ...] [--out DIR] [--limit N] [--dry-run]

Trains a one-step generator, evaluates it, and writes a run directory with the weights, samples, result.json and
report.html. The same command again resumes a run that was interrupted.

  --config FILE  start from a JSON config, such as the config.json of a run, in place of a preset
  --out DIR      the run directory (default: runs/PRESET)
  --limit N      a smoke run: N images of each place, a rollout of N, two steps (default directory: runs/PRESET-limit-N)
  --dry-run      print the resolved config as JSON and stop

Any field can be set, nested ones with dots:
  irdm train digits --rollout 4096 --distance.kind exact-mmd --battery.steps 100
"""

CHECK = """\
irdm check PRESET [--field value ...] [--out DIR] [--limit N]

Lists what a run needs (packages, device, data, weights, reference, a place to write, disk, memory, time) and whether it
is there. Takes the same fields as `irdm train`. Exits with 1 when anything is missing.
"""

RUN_HELP = "a run directory, such as runs/digits"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 typed wrongly, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(USAGE.format(version=__version__, presets=_preset_list()))
            return 0
        if argv[0] == "--version":
            print(__version__)
            return 0
        if argv[0] not in COMMANDS:
            raise UsageError(f"there is no command '{argv[0]}'{nearest(argv[0], COMMANDS)}")
        return COMMANDS[argv[0]](argv[1:])
    except UsageError as error:
        return _fail(error, 2)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def train(argv: Sequence[str]) -> int:
    """`irdm train`."""
    settings = {"config", "out", "limit", "dry_run", "help"}
    words, options = split_options(["--help" if token == "-h" else token for token in argv])
    given = {name: options.pop(name) for name in settings & options.keys()}
    if not words and "config" not in given:
        print(f"{TRAIN}\nPresets:\n{_preset_list()}\n\n`irdm train PRESET --help` lists every field.")
        return 0 if "help" in given or not options else _fail("name a preset: irdm train PRESET [--field value ...]", 2)
    start = _start(words, _path("config", given))
    if "help" in given:
        print(f"{TRAIN}\nEvery field, its type and its value here:\n\n{describe(type(start), assign(start, options))}")
        return 0
    if given.get("dry_run"):
        raise UsageError(f"--dry-run takes no value, got {' '.join(given['dry_run'])}")
    config = _limited(override(start, options), given)
    if "dry_run" in given:
        print(config.model_dump_json(indent=1))
        return 0
    from irdm.train import train as run_training

    out = _path("out", given) or Path("runs") / config.preset
    result = run_training(config, out, command=shlex.join(["irdm", "train", *argv]))
    _show_result(result, out)
    return 0


def check(argv: Sequence[str]) -> int:
    """`irdm check`."""
    words, options = split_options(["--help" if token == "-h" else token for token in argv])
    if not words or "help" in options:
        print(f"{CHECK}\nPresets:\n{_preset_list()}")
        return 0 if "help" in options else 2
    given = {name: options.pop(name) for name in {"out", "limit"} & options.keys()}
    config = _limited(override(_start(words, None), options), given)
    from irdm.check import check as look

    found = list(look(config, _path("out", given) or Path("runs") / config.preset))
    for name, there, text in found:
        print(f"{'ok' if there else 'MISSING':8} {name:9} {text}")
    missing = [name for name, there, _ in found if not there]
    return _fail(f"missing for {config.preset}: {', '.join(missing)}", 1) if missing else 0


def evaluate(argv: Sequence[str]) -> int:
    """`irdm eval`."""
    if any(word.partition("=")[0] == "--reference" for word in argv):
        from irdm.commands.evaluate import main as evaluate_source

        return evaluate_source(argv)
    parser = argparse.ArgumentParser(
        prog="irdm eval",
        description="Judge the averaged weights of a run against real images and rewrite its result.json, samples and "
        "report.html. 1.00 is a fresh draw of real images. With --reference REF it judges any images against a "
        "reference instead; `irdm eval SOURCE --reference REF --help` says how.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help=RUN_HELP)
    run = parser.parse_args(argv).run
    from irdm.run import evaluate_run

    _show_result(evaluate_run(run), run)
    return 0


def sample(argv: Sequence[str]) -> int:
    """`irdm sample`."""
    parser = argparse.ArgumentParser(
        prog="irdm sample",
        description="Draw images from a trained run, each in one evaluation of the network. Image i depends on the "
        "seed, i and its label alone: a longer draw begins with the shorter one.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--labels", type=int, nargs="+", metavar="L", help="classes to draw, taking turns (default: all)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="images in all (default: ten of each label)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the noise (default: 0)")
    parser.add_argument(
        "--format",
        choices=("grid", "files", "npz"),
        default="grid",
        help="grid: one PNG; files: a folder of PNGs; npz: arrays `images` (uint8 [n, c, h, w]) and `labels` "
        "(default: grid)",
    )
    parser.add_argument("--out", type=Path, metavar="PATH", help="where to write (default: RUN/samples/seed-S...)")
    arguments = parser.parse_args(argv)
    from irdm.sample import sample_run

    print(f"wrote {sample_run(**vars(arguments))}")
    return 0


def report(argv: Sequence[str]) -> int:
    """`irdm report`."""
    parser = argparse.ArgumentParser(
        prog="irdm report",
        description="Write RUN/report.html, one self-contained page, from what the run directory holds. Works during "
        "training too, with the figures that are known by then.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help=RUN_HELP)
    run = parser.parse_args(argv).run
    from irdm.report import write_report

    print(f"wrote {write_report(run)}")
    return 0


def encoders(argv: Sequence[str]) -> int:
    """`irdm encoders`."""
    parser = argparse.ArgumentParser(
        prog="irdm encoders",
        description="The pretrained encoders of the panel and their weights. Needs pip install 'irdm[panel]'.",
    )
    parser.add_argument(
        "action",
        choices=("list", "check", "fetch"),
        help="list: what there is, how large, under which licence, and whether it is here; check: compare every file "
        "with its sha256; fetch: download what is missing and record its sha256, also for files copied here by hand",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="encoders, such as mae dinov2 (default: all); fetch knows pickscore too",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="folder DIR/<encoder>/<file> (default: $IRDM_WEIGHTS, else a cache)"
    )
    given = parser.parse_args(argv)
    from irdm.encoders.tool import check_encoders, fetch_encoders, list_encoders

    if given.action == "list":
        print("\n".join(list_encoders(given.names, given.weights)))
    elif given.action == "fetch":
        if "pickscore" in given.names:
            from irdm.metrics.pickscore import PickScore

            PickScore.load(fetch=True)
            print("pickscore: in the hub's cache, at its pinned revision")
        names = [name for name in given.names if name != "pickscore"]
        if names or not given.names:
            fetch_encoders(names, given.weights, say=print)
    else:
        missing = []
        for name, there, text in check_encoders(given.names, given.weights):
            print(f"{'ok' if there else 'MISSING':8} {name:15} {text}", flush=True)
            missing += [] if there else [name]
        return _fail(f"{len(missing)} without usable weights: {', '.join(missing)}", 1) if missing else 0
    return 0


def experiment(argv: Sequence[str]) -> int:
    """`irdm experiment`."""
    from irdm.commands.experiment import main as run_experiment

    return run_experiment(argv)


def reference(argv: Sequence[str]) -> int:
    """`irdm reference`."""
    from irdm.commands.reference import main as run_reference

    return run_reference(argv)


def compare(argv: Sequence[str]) -> int:
    """`irdm compare`."""
    from irdm.commands.compare import main as run_compare

    return run_compare(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "eval": evaluate,
    "sample": sample,
    "report": report,
    "reference": reference,
    "compare": compare,
    "check": check,
    "encoders": encoders,
    "experiment": experiment,
}


def _fail(message: object, code: int) -> int:
    print(f"irdm: error: {message}", file=sys.stderr)
    return code


def _path(name: str, given: Mapping[str, list[str]]) -> Path | None:
    if name not in given:
        return None
    if len(given[name]) != 1:
        raise UsageError(f"--{name} takes one path, got {len(given[name])}")
    return Path(given[name][0])


def _start(words: Sequence[str], file: Path | None) -> RunConfig:
    """The config that the overrides change: a preset's, or a file's."""
    from irdm.presets import PRESETS, RunConfig

    if len(words) > 1:
        raise UsageError(f"one preset at a time, got {' '.join(words)}; fields are set with --field value")
    if file is not None:
        if words:
            raise UsageError(f"give the preset {words[0]} or --config {file}, not both")
        return read_config(RunConfig, file)
    if words[0] not in PRESETS:
        raise UsageError(f"there is no preset '{words[0]}'{nearest(words[0], PRESETS)}")
    return PRESETS[words[0]]()


def _limited(config: RunConfig, given: Mapping[str, list[str]]) -> RunConfig:
    """The config, cut down by --limit N."""
    if "limit" not in given:
        return config
    if len(given["limit"]) != 1 or not given["limit"][0].isdecimal():
        raise UsageError(f"--limit takes one number of images, got '{' '.join(given['limit'])}'")
    from irdm.presets import limited

    return limited(config, int(given["limit"][0]))


def _preset_list() -> str:
    """Each preset with the first line of its docstring, read from the source: importing it would import torch."""
    tree = ast.parse(Path(__file__).with_name("presets.py").read_text())
    lines = {f.name: (ast.get_docstring(f) or "").split("\n")[0] for f in tree.body if isinstance(f, ast.FunctionDef)}
    table = next(s.value for s in tree.body if isinstance(s, ast.AnnAssign) and ast.unparse(s.target) == "PRESETS")
    assert isinstance(table, ast.Dict)
    presets = ast.unparse(table).strip("{}").replace("'", "").split(", ")
    return "\n".join(f"  {name:14} {lines[function]}" for name, function in (p.split(": ") for p in presets))


def _show_result(result: Mapping[str, Any], run: Path) -> None:
    """The short table at the end of a run; nothing on ranks that have no result."""
    if not result:
        return
    sw = result["sw_ratio"]
    rows = [
        ("sliced Wasserstein, all encoders", sw["mean"], "1.00"),
        ("  encoders that trained", sw["held_in"], "1.00"),
        ("  encoders held out", sw["held_out"], "1.00"),
        ("  against unseen real images", _mean(result["sw_ratio_unseen"]), "1.00"),
        ("MMD", _mean(result["mmd_ratio"]), "1.00"),
        ("nearest training image", _mean(result["nearest_neighbour_ratio"]), "1.00"),
    ]
    accuracy = result["label_accuracy"]
    rows.append(("labels recognised (not a ratio)", accuracy["generated"], accuracy["real_test"]))
    print(f"\n{'distance to real images, as a ratio':38}{'generated':>10}{'real':>8}")
    for name, value, real in rows:
        print(f"{name:38}{_number(value):>10}{_number(real):>8}")
    print(f"\nreport: {run / 'report.html'}")


def _mean(value: Mapping[str, Any]) -> float:
    return value["mean" if "mean" in value else "value"]


def _number(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
