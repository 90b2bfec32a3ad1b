"""`irdm reference`: build a reference, show one."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from irdm.data.limited import Limited
from irdm.data.sources import open_source
from irdm.distributed import Ranks
from irdm.encoders import LocalBatteryConfig
from irdm.references import ReferenceConfig, build_references, describe, local_battery, open_reference, panel_battery
from irdm.references.panels import LOCAL_SIZE, PANEL_SIZE
from irdm.run import cache_dir, resolve_device

REFERENCES = Path("references")


def main(argv: Sequence[str]) -> int:
    """Run `irdm reference`; returns 0. Raises ValueError and OSError with what a user can do."""
    parser = argparse.ArgumentParser(
        prog="irdm reference",
        description="A reference is the real side of training and of evaluation: real images under a panel of "
        "encoders, with every distance, floor and bank that follows from them. It is built once, in one "
        "directory, and hashed.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser(
        "build",
        help="build a reference; the same command again goes on where it was",
        description="Build a reference from real images. A killed or interrupted build goes on when the same command "
        "is given again. Under torchrun, several processes share the work.",
    )
    build.add_argument("name", metavar="NAME", help="what the reference is called in results")
    source = "a folder of images (perhaps one folder a class), a .zip, .tar, .npz or .npy, or a folder of .tar"
    build.add_argument("--train", type=Path, required=True, metavar="SOURCE", help=source)
    build.add_argument("--val", type=Path, required=True, metavar="SOURCE", help="real images that are not in train")
    build.add_argument(
        "--panel",
        default="local",
        metavar="PANEL",
        help="local: encoders fitted to the train images, no weights needed; panel: the fourteen pretrained ones; or "
        "names of those, such as inception,dinov2 (default: local)",
    )
    build.add_argument("--weights", type=Path, metavar="DIR", help="weights of pretrained encoders (see irdm encoders)")
    build.add_argument(
        "--size",
        type=int,
        metavar="S",
        help=f"side of the centre crop in pixels (default: {LOCAL_SIZE} for local, {PANEL_SIZE} for pretrained)",
    )
    build.add_argument("--out", type=Path, metavar="DIR", help="default: references/NAME")
    build.add_argument("--seed", type=int, default=0, metavar="S", help="of every draw and fit (default: 0)")
    build.add_argument(
        "--rollout",
        type=int,
        default=5120,
        metavar="N",
        help="batch size of training that floors are for (default: 5120)",
    )
    build.add_argument("--limit", type=int, metavar="N", help="only N random images of train and of val, for a trial")
    build.add_argument(
        "--battery-steps",
        type=int,
        default=300,
        metavar="N",
        help="optimizer steps of each local encoder (default: 300)",
    )
    build.add_argument("--micro-batch", type=int, default=64, metavar="N", help="images embedded at once (default: 64)")
    build.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    show = actions.add_parser("show", help="which images, which encoders, counts, seeds, floors, hashes")
    show.add_argument("reference", type=Path, metavar="REF", help="a reference's directory, or its name in references/")
    given = parser.parse_args(argv)
    if given.action == "show":
        print("\n".join(describe(open_reference(find_reference(given.reference)))))
    else:
        _build(given, shlex.join(["irdm", "reference", *argv]))
    return 0


def find_reference(reference: Path) -> Path:
    """The directory of a reference given by path or by name."""
    named = REFERENCES / reference
    return named if not reference.exists() and named.is_dir() else reference


def _build(given: argparse.Namespace, command: str) -> None:
    device = resolve_device(given.device)
    ranks = Ranks.start(device)
    say = (lambda text: print(text, flush=True)) if ranks.is_main else (lambda text: None)
    train, val = open_source(given.train), open_source(given.val)
    if given.limit is not None:
        train, val = (Limited(source, given.limit, given.seed) for source in (train, val))
    size = given.size or (LOCAL_SIZE if given.panel == "local" else PANEL_SIZE)
    if given.panel == "local":
        battery = LocalBatteryConfig(seed=given.seed, steps=given.battery_steps)
        if not ranks.is_main:
            ranks.barrier()  # the main rank fits the encoders, the others read its cache
        panel = local_battery(train, size, battery, cache_dir(), say)
        if ranks.is_main:
            ranks.barrier()
    else:
        panel = panel_battery(given.panel, given.weights, say)
    out = given.out or REFERENCES / given.name
    config = ReferenceConfig(size=size, seed=given.seed, rollout=given.rollout)
    reference = build_references(
        given.name,
        train,
        val,
        panel,
        out,
        config,
        micro_batch=given.micro_batch,
        device=device,
        ranks=ranks,
        command=command,
        progress=say,
    )
    say(f"\nreference {given.name} of {len(reference.names)} encoders: {out}{os.sep}")
    say(f"judge images against it: irdm eval SOURCE --reference {out}")
