"""A reference on disk: files that never change, and one manifest that names and hashes them all.

    REF/plan.json               what decides everything below; written first, it claims the directory
    REF/encoders.safetensors    the weights of a local battery; pretrained encoders are named by their hashes
    REF/train/, REF/val/        the features of all images (irdm.store); judging needs neither
    REF/judging/<encoder>.safetensors    what evaluation compares with (irdm.judging.bank)
    REF/training/<encoder>.safetensors   a fitted distance and its floor (irdm.references)
    REF/samples.safetensors     a few val images, for reports
    REF/manifest.json           the plan, its address, and size and sha256 of every file; written last

The address is the sha256 of the plan: references of one address hold the same numbers, whatever they are called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from irdm.checkpoint import sha256_of, write_atomic
from irdm.store.reader import canonical

FORMAT = 1  # part of the plan: raise it when the files of one plan change
PLAN, MANIFEST, ENCODERS, SAMPLES = "plan.json", "manifest.json", "encoders.safetensors", "samples.safetensors"


def address_of(plan: Mapping[str, Any]) -> str:
    """sha256 of a plan, in hexadecimal."""
    return hashlib.sha256(canonical(plan)).hexdigest()


class ReferenceFolder:
    """A finished reference. Sizes of files are compared on opening, the sha256 of a file when it is first read."""

    def __init__(self, path: Path):
        """Raises ValueError when `path` holds no finished reference, or a file is missing, cut short or altered."""
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self.plan: dict[str, Any] = self.manifest["plan"]
        self.name: str = self.manifest["name"]
        self.address: str = self.manifest["address"]
        self._checked: set[str] = set()
        for name, file in self.manifest["files"].items():
            found = self.path / name
            size = found.stat().st_size if found.is_file() else None
            if size != file["bytes"]:
                raise self._damaged(name, "is missing" if size is None else f"has {size} bytes, not {file['bytes']}")

    def tensors(self, name: str, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of a safetensors file of the reference and its notes; on the CPU they are mapped, not read.

        Raises ValueError when the file was altered.
        """
        if name not in self._checked:
            if sha256_of(self.path / name) != self.manifest["files"][name]["sha256"]:
                raise self._damaged(name, "was altered: its sha256 is not the manifest's")
            self._checked.add(name)
        with safe_open(self.path / name, framework="pt", device=device) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118

    def _damaged(self, name: str, what: str) -> ValueError:
        return ValueError(
            f"{self.path / name} {what}. Delete it and repeat the command that built the reference: only that file is "
            f"made again. It was: {self.manifest['command']}"
        )


def refuse_foreign(path: Path) -> None:
    """Raises ValueError when the directory holds files, and not those of a reference."""
    there = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")) if path.is_dir() else []
    if there and PLAN not in there:
        raise ValueError(f"{path} holds {there[0]} and is no reference; choose an empty or a new directory.")


def write_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Make the directory that of this plan, or find that it is. Raises ValueError when it is that of another plan."""
    if not (path / PLAN).exists():
        write_atomic(path / PLAN, json.dumps(plan, indent=1))
    elif (found := json.loads((path / PLAN).read_text())) != plan:
        lines = [f"  {key}: {_short(found.get(key))} there, {_short(plan[key])} now" for key in plan]
        odd = [line for key, line in zip(plan, lines, strict=True) if found.get(key) != plan[key]]
        raise ValueError(
            f"{path} is a reference of something else:\n" + "\n".join(odd) + "\nChoose another directory, or delete it."
        )


def write_manifest(path: Path, plan: Mapping[str, Any], name: str, files: list[str], **notes: Any) -> None:
    """Hash the files and say that the reference is whole."""
    body: dict[str, Any] = {"name": name, "address": address_of(plan), "plan": plan, **notes}
    body["files"] = {file: {"sha256": sha256_of(path / file), "bytes": (path / file).stat().st_size} for file in files}
    body["self"] = hashlib.sha256(canonical(body)).hexdigest()
    write_atomic(path / MANIFEST, json.dumps(body, indent=1))


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        body = json.loads(file.read_text())
        claimed, version = body.pop("self"), body["plan"]["format"]
    except FileNotFoundError:
        what = "an unfinished reference" if (path / PLAN).exists() else "no reference"
        raise ValueError(f"{path} is {what}: build it, to its end, with `irdm reference build`.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} cannot be read as a reference's ({error!r}). Delete it and repeat the build: finished files are "
            "kept."
        ) from error
    if claimed != hashlib.sha256(canonical(body)).hexdigest():
        raise ValueError(f"{file} was altered: its checksum does not match. Delete it and repeat the build.")
    if version != FORMAT:
        raise ValueError(
            f"{path} is a reference of version {version}; this irdm reads version {FORMAT}. Build it again, or use the "
            "irdm that made it."
        )
    return body


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
