"""What faults are injected into: three commands, each run in a forked process, and what must come of them.

    build   irdm reference build: encoders are fitted, features stored, distances fitted, defects measured
    train   irdm train: steps, checkpoints, judging, the report
    eval    irdm eval of a folder against the reference: embedding, judging, the report

A command is right when it leaves exactly what an undisturbed one leaves: every byte of references, stores, encoders and
weights, and every score.
"""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from tiny_reference import write_pictures

import irdm.commands.eval
import irdm.commands.reference
import irdm.commands.train
import irdm.report
import irdm.train  # noqa: F401 (before the forks, not in each)
from irdm.cli import main
from irdm.evaluation.result import RESULT, read_result

JUDGING = {
    "draws": 1, "directions": 8, "rff_features": 16, "resamples": 2, "manifold_rows": 64, "quick_directions": 8,
    "ladder": 0,
}  # fmt: skip
BATTERY = "--battery.held-in pixels,content --battery.held-out pca"
COMMANDS = {
    "build": f"reference build tiny --train pictures/train --val pictures/val --rollout 64 --battery-steps 2 {BATTERY} "
    "--distance.landmarks 32 --out reference",
    "train": f"train digits-smoke --rollout 64 --steps 3 --log-every 1 --check-every 3 --checkpoint-every 1 {BATTERY} "
    "--battery.steps 2 --device cpu --out run "
    + " ".join(f"--evaluation.{name.replace('_', '-')} {value}" for name, value in JUDGING.items()),
    "eval": "eval pictures/fresh --against reference --out eval",
}
NEEDS = {"build": "pictures", "train": "", "eval": "reference"}
MADE = {"build": ("reference", "cache"), "train": ("run", "cache"), "eval": ("eval",)}


class Scene:
    """Pictures, and what each command leaves when nothing disturbs it."""

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0
        for seed, (split, count) in enumerate({"train": 120, "val": 90, "fresh": 80}.items()):
            write_pictures(folder / "pictures" / split, count, seed, side=8)
        self._whole: dict[str, tuple[Path, dict[str, str]]] = {}

    def whole(self, name: str) -> Path:
        """Where a command was left undisturbed."""
        return self._made(name)[0]

    def _made(self, name: str) -> tuple[Path, dict[str, str]]:
        if name not in self._whole:
            place = self.place(name)
            code, said = run(name, place)
            assert code == 0, said
            self._whole[name] = place, content(name, place)
        return self._whole[name]

    def place(self, name: str) -> Path:
        """A new folder in which a command finds what it needs and nothing of its own."""
        self.number += 1
        place = self.folder / f"{name}-{self.number}"
        place.mkdir()
        (place / "pictures").symlink_to(self.folder / "pictures")
        if NEEDS[name] == "reference":
            (place / "reference").symlink_to(self.whole("build") / "reference")
        return place

    def wrong(self, name: str, place: Path) -> list[str]:
        """What a command left that it should not have, or the other way round."""
        found, right = content(name, place), self._made(name)[1]
        odd = sorted(file for file in {**found, **right} if found.get(file) != right.get(file))
        left = [str(path) for path in place.rglob(".*") if path.name != ".lock"]
        return odd + left


def start(name: str, place: Path, before: Callable[[], None] = lambda: None) -> tuple[int, Path]:
    """A command in a forked process: its number, and the file of what it tells of failure."""
    said = place.parent / f"{place.name}.said"
    child = os.fork()
    if not child:
        os.chdir(place)
        os.environ["IRDM_CACHE"] = "cache"
        for stream, target in ((1, os.devnull), (2, said)):
            os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        try:
            before()
            code = main(COMMANDS[name].split())
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 70
        sys.stderr.flush()
        os._exit(code)
    return child, said


def wait(child: int, said: Path) -> tuple[int, str]:
    """The exit code, negative for a signal, and what was told."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")


def run(name: str, place: Path, before: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """A command to its end."""
    return wait(*start(name, place, before))


def last_line(said: str) -> str:
    """The end of what was told."""
    return (said.strip().splitlines() or ["nothing"])[-1]


def clear(said: str) -> bool:
    """Whether a failure is told in words for a user: an error, and no traceback."""
    return "Traceback" not in said and f"\n{said}".count("\nirdm: error: ") == 1


def content(name: str, place: Path) -> dict[str, str]:
    """The hash of every file that a command answers for, what depends on the clock left out."""
    found = {}
    for top in MADE[name]:
        for path in sorted((place / top).rglob("*")):
            if path.is_file() and not path.name.startswith(".") and top != "run" and path.name not in (RESULT,):
                found[str(path.relative_to(place))] = hashlib.sha256(path.read_bytes()).hexdigest()
    if name == "train":
        last = place / "run" / "checkpoints" / "step-00000003"
        for path in sorted(last.glob("*.safetensors")):
            tensors = {key: tensor.numpy().tobytes() for key, tensor in sorted(load_file(path).items())}
            found[f"{last.name}/{path.name}"] = hashlib.sha256(repr(tensors).encode()).hexdigest()
    result = place / {"train": "run", "eval": "eval"}.get(name, "none") / RESULT
    if result.exists():
        scores = {key: score.model_dump() for key, score in read_result(result).scores.items()}
        found["scores"] = hashlib.sha256(repr(scores).encode()).hexdigest()
    if name != "build":
        found["report"] = str((result.parent / "report.html").exists())
    unread = ("eval/features/identity.json", "eval/features/shard-00000/manifest.json")  # once the store is finished
    return {file: digest for file, digest in found.items() if not file.endswith((".html", ".npz", *unread))}


def phase(name: str, place: Path) -> str:
    """How far a command had come, by what is there."""
    there = [path for path in place.rglob("*") if path.name != ".lock" and ".partial" not in str(path)]
    names = {str(path.relative_to(place)) for path in there}
    if name == "build":
        if "reference/plan.json" not in names:
            return "fit of encoders"
        return "reference" if "reference/manifest.json" not in names else "ladder and end of the reference"
    if name == "eval":
        return "embedding" if "eval/features/manifest.json" not in names else _judged("eval", names)
    if not any(path.startswith("run/checkpoints/step-") for path in names):
        return "start of training"
    return "training and checkpoints" if "run/checkpoints/step-00000003" not in names else _judged("run", names)


def _judged(top: str, names: set[str]) -> str:
    return "judging" if f"{top}/{RESULT}" not in names else "report"
