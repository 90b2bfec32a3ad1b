"""Faults, one kind at a time: python inject.py KIND FOLDER [--count N] [--seed S]; `test_faults.py` runs it.

    writes   training dies before or after each S-th of its changes of the file system; S is --count
    kills    SIGKILL at N random moments, half at a change of the file system, half at a time, over all commands
    full     no file may grow beyond a size, from less than the smallest to less than the largest; N sizes a command
    flips    a bit of a file of each kind that a command leaves, N times a kind
    writers  two processes with the same command at once, N times a command
    nan      an encoder that fails at its k-th call, N times a command

After each fault the command is repeated, and must leave what an undisturbed one leaves. A line a fault, and at the end
the counts by phase. The machine is shared with nobody's files: everything is below FOLDER.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch  # noqa: E402
from scene import COMMANDS, Scene, clear, last_line, phase, run, start, wait  # noqa: E402
from torch import nn  # noqa: E402

from irdm.encoders.base import Encoder  # noqa: E402

CALLS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir")
SAID = 1024  # bytes: what is told of a failure must itself fit into a file
Fault = tuple[str, str, list[str]]
"""The phase it struck, what was told, and what is wrong after it: nothing, if all is well."""


def dying(point: int, after: bool = False, counted: Path | None = None) -> Callable[[], None]:
    """Makes this process die at its `point`-th change of the file system, before or after it; 0 counts them."""

    def arm() -> None:
        count = [0]
        for name in CALLS:
            plain = getattr(os, name)

            def call(*args, plain=plain, **options):
                count[0] += 1
                if counted is not None:
                    counted.write_text(str(count[0]))
                if count[0] == point and not after:
                    os._exit(137)
                found = plain(*args, **options)
                if count[0] == point:
                    os._exit(137)
                return found

            setattr(os, name, call)

    return arm


def changes(scene: Scene, name: str) -> tuple[int, float]:
    """How often a command changes the file system, and how many seconds it takes."""
    place, began = scene.place(name), time.monotonic()
    counted = scene.folder / f"{name}.count"
    code, said = run(name, place, dying(0, counted=counted))
    assert code == 0, said
    shutil.rmtree(place)
    return int(counted.read_text()), time.monotonic() - began


def repeated(scene: Scene, name: str, place: Path) -> list[str]:
    """What is wrong after the command was given again."""
    code, said = run(name, place)
    return scene.wrong(name, place) if code == 0 else [f"exit {code}: {said.strip()[-300:]}"]


def writes(scene: Scene, count: int, draw: random.Random) -> Iterator[Fault]:
    calls, _ = changes(scene, "train")
    for number, point in enumerate(range(1, calls + 1, count)):
        place = scene.place("train")
        run("train", place, dying(point, after=number % 2 == 1))
        yield phase("train", place), f"change {point} of {calls}", repeated(scene, "train", place)
        shutil.rmtree(place)


def kills(scene: Scene, count: int, draw: random.Random) -> Iterator[Fault]:
    known = {name: changes(scene, name) for name in COMMANDS}
    for number in range(count):
        name = ("build", "train", "build", "train", "eval")[number % 5]
        calls, seconds = known[name]
        place, when = scene.place(name), draw.randrange(1, calls + 1)
        if number % 2:
            run(name, place, dying(when, after=draw.random() < 0.5))
            struck = f"change {when} of {calls}"
        else:
            moment = draw.uniform(0, seconds)
            child, said = start(name, place)
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
            wait(child, said)
            struck = f"{moment:.2f} of {seconds:.2f} s"
        yield f"{name}: {phase(name, place)}", struck, repeated(scene, name, place)
        shutil.rmtree(place)


def full(scene: Scene, count: int, draw: random.Random) -> Iterator[Fault]:
    for name in COMMANDS:
        files = [path for path in scene.whole(name).rglob("*") if path.is_file() and not path.is_symlink()]
        sizes = sorted({path.stat().st_size for path in files if "pictures" not in path.parts} - {*range(SAID)})
        for size in sizes[:: max(1, len(sizes) // count)]:
            place, limit = scene.place(name), max(1, size - 1)
            code, said = run(name, place, lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
            told = said.strip().splitlines()[-1] if said.strip() else "nothing"
            wrong = (
                [] if code == 0 else [] if code == 1 and "Make room" in told and clear(said) else [f"{code}: {told}"]
            )
            yield f"{name}: {phase(name, place)}", told, wrong + repeated(scene, name, place)
            shutil.rmtree(place)


def kind_of(path: Path) -> str:
    """Files whose names differ in numbers or encoders alone are of one kind."""
    text = re.sub(r"(real|training)/[^/]+/", r"\1/*/", re.sub(r"features-[^/]+\.", "features-*.", str(path)))
    return re.sub(r"[0-9a-f]{16,}|\d+", "#", text)


def flips(scene: Scene, count: int, draw: random.Random) -> Iterator[Fault]:
    for name in COMMANDS:
        whole, kinds = scene.whole(name), dict[str, list[Path]]()
        for path in sorted(whole.rglob("*")):
            inside = path.relative_to(whole)
            own = inside.parts[0] != "pictures" and (inside.parts[0] != "reference" or name == "build")
            if path.is_file() and own and not path.name.startswith("."):
                kinds.setdefault(kind_of(inside), []).append(inside)
        for kind, files in kinds.items():
            for _ in range(count):
                place = scene.folder / f"flip-{name}"
                shutil.copytree(whole, place, symlinks=True)
                path = place / draw.choice(files)
                data = bytearray(path.read_bytes())
                if not data:
                    shutil.rmtree(place)
                    continue
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                path.write_bytes(data)
                code, said = run(name, place)
                if code == 0:
                    told, wrong = "mended, or no part of what is answered for", scene.wrong(name, place)
                else:
                    told = last_line(said)
                    wrong = [] if code == 1 and clear(said) and path.name in said else [f"exit {code}: {told}"]
                yield f"{name}: {kind}", told[:160], wrong
                shutil.rmtree(place)


def writers(scene: Scene, count: int, draw: random.Random) -> Iterator[Fault]:
    for name in COMMANDS:
        for _ in range(count):
            place = scene.place(name)
            first = start(name, place)
            time.sleep(draw.uniform(0, 1))
            other = scene.folder / "other.said"
            (place.parent / f"{place.name}.said").rename(other)
            second = start(name, place)
            ends = [wait(first[0], other), wait(*second)]
            refused = [said for code, said in ends if code]
            wrong = [] if all("is being" in said and clear(said) for said in refused) else refused
            wrong += ["both were refused"] if len(refused) == 2 else []
            yield name, f"{len(refused)} refused", wrong + scene.wrong(name, place)
            shutil.rmtree(place)


class Broken(nn.Module):
    """A network whose features are NaN."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images) * torch.nan


def nan(scene: Scene, count: int, draw: random.Random) -> Iterator[Fault]:
    for name in COMMANDS:
        for call in range(1, count + 1):
            place, plain = scene.place(name), Encoder.forward

            def arm(call=call, plain=plain) -> None:
                left = [call]

                def forward(self, images):
                    left[0] -= self.name == "pca"
                    if left[0] == 0 and self.name == "pca":
                        network, self.network = self.network, Broken(self.network)
                        try:
                            return plain(self, images)
                        finally:
                            self.network = network
                    return plain(self, images)

                Encoder.forward = forward  # type: ignore[method-assign]

            code, said = run(name, place, arm)
            if code:  # it was called so often
                named = code == 1 and clear(said) and "Encoder 'pca'" in said and "NaN" in said
                wrong = [] if named else [f"exit {code}: {last_line(said)}"]
                yield f"{name}: {phase(name, place)}", last_line(said)[:160], wrong + repeated(scene, name, place)
            shutil.rmtree(place)


KINDS = {"writes": writes, "kills": kills, "full": full, "flips": flips, "writers": writers, "nan": nan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scene, counts, failed = Scene(args.folder.resolve()), Counter[str](), 0
    for where, told, wrong in KINDS[args.kind](scene, args.count, random.Random(args.seed)):
        counts[where] += 1
        failed += bool(wrong)
        print(f"{'FAILED' if wrong else 'ok'} {where}: {told}{f'; {wrong}' if wrong else ''}", flush=True)
    for where, number in sorted(counts.items()):
        print(f"{number:5} {where}")
    print(f"{sum(counts.values())} {args.kind}, {failed} failed")


if __name__ == "__main__":
    main()
