"""Kill a training run at its k-th write, for every k asked for, and repeat the command: run by test_crash.py.

python crash.py FOLDER STRIDE: prints a line for each point; a point is a call that changes the file system.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

from irdm.encoders import LocalBatteryConfig
from irdm.evaluation import EvaluationConfig
from irdm.presets import PRESETS
from irdm.train import train

CALLS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir")
BATTERY = LocalBatteryConfig(held_in=("pixels", "patches"), held_out=("pca",), steps=2)
JUDGED = EvaluationConfig(draws=1, directions=8, rff_features=16, resamples=2, manifold_rows=64, quick_directions=8)
CONFIG = PRESETS["digits-smoke"]().model_copy(
    update={"battery": BATTERY, "evaluation": JUDGED, "rollout": 32, "steps": 3, "log_every": 1}
    | {"check_every": 3, "checkpoint_every": 1, "device": "cpu"}
)


def arm(point: int, after: bool, count: list[int]) -> None:
    """Make the process die at the `point`-th call from now on."""
    for name in CALLS:
        plain = getattr(os, name)

        def dying(*args, plain=plain, **options):
            count[0] += 1
            if count[0] == point and not after:
                os._exit(137)
            found = plain(*args, **options)
            if count[0] == point:
                os._exit(137)
            return found

        setattr(os, name, dying)


def run(out: Path, point: int = 0, after: bool = False) -> tuple[int, int]:
    """(exit code, calls) of a run in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        count = [0]
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        arm(point, after, count)
        try:
            train(CONFIG, out)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os.write(write, str(count[0]).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    calls = os.read(read, 64)
    os.close(read)
    return os.waitstatus_to_exitcode(status), int(calls or 0)


def weights(out: Path) -> str:
    """Of the last checkpoint, its tensors and nothing that depends on the clock."""
    files = sorted((out / "checkpoints" / "step-00000003").glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def main(folder: Path, stride: int) -> None:
    assert run(folder / "warm")[0] == 0  # fills the cache of encoders
    code, calls = run(folder / "whole")
    assert code == 0
    wanted, failed = weights(folder / "whole"), 0
    for number, point in enumerate(range(1, calls + 1, stride)):
        out = folder / f"point-{point}"
        first, _ = run(out, point, after=number % 2 == 1)
        second, _ = run(out)
        left = [str(path) for path in out.rglob(".*") if path.name != ".lock"]
        good = first in (137, 0) and second == 0 and weights(out) == wanted and not left
        good = good and (out / "result.json").exists() and (out / "report.html").exists()
        failed += not good
        print(f"{'ok' if good else 'FAILED'} point {point}: exits {first}, {second}; left {left}", flush=True)
        shutil.rmtree(out)
    print(f"{calls} points, {failed} failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
