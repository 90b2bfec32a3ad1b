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

import torch
from safetensors.torch import load_file
from torch import Tensor

MANIFEST = "manifest.json"
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
"""Types of tensors in a checkpoint, as safetensors names them."""


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
def resumable(path: Path, parts: str) -> Iterator[None]:
    """Say of a disk that filled up while `path` was written that the finished `parts` stay. Raises OSError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        message = f"{error.strerror}: {path} could not be written. Finished {parts} are kept: make room and repeat the"
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
            digests[name] = _write_tensors(partial / f"{name}.safetensors", group)
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
    """Verify one checkpoint folder and map its tensors into memory: pages are read as they are used.

    Raises ValueError naming a file that is missing, cut short or altered.
    """
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
        if not file.is_file() or sha256_of(file) != digest:
            size = file.stat().st_size if file.is_file() else None
            what = "is missing" if size is None else f"is cut short or altered ({size} bytes, other sha256)"
            raise ValueError(f"{file} {what}; the checkpoint is not usable.")
        tensors[name] = load_file(file)
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


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer, such as moments, by "parameter.name": what a checkpoint keeps of it."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, slots in state.items() for name, value in slots.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Continue from `optimizer_tensors`."""
    body = optimizer.state_dict()
    for key, value in tensors.items():
        index, name = key.split(".")
        body["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(body)


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _canonical(body: Mapping) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file one tensor at a time, so that no second copy of them is made; its sha256."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # wide types stay aligned
    header, end = {}, 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in (len(text).to_bytes(8, "little") + text, *(tensor for _, tensor in ordered)):
            data = piece if isinstance(piece, bytes) else _bytes(piece)
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
