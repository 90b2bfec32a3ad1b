"""`irdm compare A B`: two evaluations of one protocol, side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from irdm.checkpoint import write_atomic
from irdm.compare import compare


def main(argv: Sequence[str]) -> int:
    """Run `irdm compare`; returns 0. Raises ValueError for a file that holds no result, or unlike protocols."""
    parser = argparse.ArgumentParser(
        prog="irdm compare",
        description="The paired difference of two evaluations with its 95% bootstrap interval. Refuses results of "
        "unlike protocols: another reference, panel, number of images, seed or setting.",
    )
    for name in ("a", "b"):
        parser.add_argument(name, type=Path, metavar=name.upper(), help="a result.json, or the directory it lies in")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the bootstrap (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the comparison as JSON")
    given = parser.parse_args(argv)
    found = compare(read_result(given.a), read_result(given.b), seed=given.seed)
    if given.out:
        write_atomic(given.out, json.dumps(found, indent=1))
    print(f"A  {given.a}\nB  {given.b}\n\n{'':34}{'A':>9}{'B':>9}{'B - A':>9}   95% interval")
    for name, metric in found["metrics"].items():
        for group in ("mean", "held_in", "held_out", "value"):
            if part := metric.get(group):
                _row(name if group in ("mean", "value") else f"  {group.replace('_', ' ')}", part)
        if metric.get("mean") is None and "per_encoder" in metric:
            for encoder, part in metric["per_encoder"].items():
                _row(f"{name} {encoder}", part)
    return 0


def read_result(path: Path) -> dict[str, Any]:
    """The JSON of an evaluation. Raises ValueError when there is none or it cannot be read."""
    file = path / "result.json" if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"There is no {file}; give a result.json or its directory, from `irdm eval`.") from None
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); run `irdm eval` again.") from None
    if not isinstance(result, dict):
        raise ValueError(f"{file} holds a {type(result).__name__}, not a result; run `irdm eval` again.")
    return result


def _row(label: str, part: Mapping[str, Any]) -> None:
    low, high = part["ci95"]
    better = f"  {part['better'].upper()} is better" if part["better"] else ""
    numbers = "".join(f"{part[key]:9.3f}" for key in ("a", "b", "difference"))
    print(f"{label:34}{numbers}   {low:.3f} to {high:.3f}{better}")
