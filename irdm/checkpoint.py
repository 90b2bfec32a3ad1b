"""Checkpoints that hold everything, are either whole or absent, and say so when a byte has changed.

A checkpoint is a folder `step-00000500/` of safetensors files and a `manifest.json` with the sha256 of each. It is
written under a temporary name and renamed, so a killed process leaves the last good state.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

MANIFEST = "manifest.json"


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old one or the whole new one. Raises OSError with nothing left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write_synced(partial, data.encode() if isinstance(data, str) else data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the directory `path`, made if need be, as its only builder. The system lets go when the process dies.

    Raises ValueError naming the process that holds it now.
    """
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ValueError(
                f"{path} is being built by {lock.read().strip() or 'another process'}. Wait until that has finished; "
                "the same command then finds the result there."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        yield


@contextmanager
def resumable(path: Path) -> Iterator[None]:
    """Say of a disk that is full, while `path` is built, that what is finished stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "repeat the command" in str(error):
            raise
        message = f"{error.strerror}: {path} could not be finished. What is finished is kept: make room and repeat the"
        raise OSError(error.errno, f"{message} command to go on.") from error


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` {file: {name: tensor}} and the JSON `state` of one step."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping, keep: int = 2
) -> Path:
    """Write `folder/step-<step>` atomically, then delete all but the newest `keep`; on OSError the old stay."""
    target = folder / f"step-{step:08d}"
    partial = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        digests = {}
        for name, group in tensors.items():
            data = save({key: value.detach().cpu().contiguous() for key, value in group.items()})
            digests[name] = hashlib.sha256(data).hexdigest()
            _write_synced(partial / f"{name}.safetensors", data)
        body = {"step": step, "sha256": digests, "state": dict(state)}
        body["self"] = hashlib.sha256(_canonical(body)).hexdigest()
        _write_synced(partial / MANIFEST, json.dumps(body, indent=1).encode())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _folders(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder. Raises ValueError naming a file that is missing, cut short or altered."""
    try:
        body = json.loads((path / MANIFEST).read_text())
        claimed = body.pop("self")
        intact = claimed == hashlib.sha256(_canonical(body)).hexdigest()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path / MANIFEST} cannot be read ({error}); the checkpoint is not usable.") from error
    if not intact:
        raise ValueError(f"{path / MANIFEST} was altered: its checksum does not match; the checkpoint is not usable.")
    tensors = {}
    for name, digest in body["sha256"].items():
        file = path / f"{name}.safetensors"
        data = file.read_bytes() if file.is_file() else None
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            what = "is missing" if data is None else f"is cut short or altered ({len(data)} bytes, other sha256)"
            raise ValueError(f"{file} {what}; the checkpoint is not usable.")
        tensors[name] = load(data)
    return Checkpoint(body["step"], tensors, body["state"])


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with each newer one that was refused.

    Raises ValueError when there are checkpoints and none is usable.
    """
    refused = []
    for path in reversed(_folders(folder)):
        try:
            return load_checkpoint(path), refused
        except ValueError as error:
            refused.append(str(error))
    if refused:
        raise ValueError(
            "No checkpoint is usable:\n  " + "\n  ".join(refused) + f"\nRestore one, or delete {folder} to start again."
        )
    return None, []


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _canonical(body: Mapping) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
