"""Files that are whole or absent, noticed when damaged, and never written by two processes at once.

One writer, one lock, one manifest: used by checkpoints, stores, references, caches and runs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

LOCK = ".lock"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or this program after a crash, sees the old one or the whole new one.

    Raises OSError naming the file, with nothing left behind.
    """
    with replaced(path) as file:
        file.write(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written that takes the place of `path` when the block ends well, and else leaves no trace."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """An empty folder to be filled that takes the place of `path` when the block ends well, and else leaves no trace."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with _naming(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            sync_folder(partial)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(partial, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk: a rename is lost in a power cut otherwise."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, doing: str = "used") -> Iterator[None]:
    """Hold the directory `path`, made if need be, as its only writer; the system lets go when the process dies.

    What killed holders left half-written in it (hidden names that end in a process number) is cleared away first.
    Raises ValueError naming the process that holds it now, OSError when it cannot be written.
    """
    with _naming(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / LOCK, "a+")  # noqa: SIM115 (held to the end of the block)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ValueError(
                f"{path} is being {doing} by {lock.read().strip() or 'another process'}. Wait until that has finished, "
                "or give another directory."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        clear_partial(path)
        yield


def clear_partial(path: Path) -> None:
    """Remove what killed processes left half-written below a directory that this process holds."""
    for folder, folders, files in os.walk(path):
        for name in [*folders, *files]:
            if re.fullmatch(r"\..+\.\d+", name):
                left = Path(folder, name)
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        folders[:] = [name for name in folders if not re.fullmatch(r"\..+\.\d+", name)]


def visible(path: Path) -> list[str]:
    """The names in a directory but hidden ones; none when it is not there."""
    return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")) if path.is_dir() else []


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the system name the file that was to be written and, for a full disk, say what helps."""
    try:
        yield
    except OSError as error:
        if str(path) in str(error) and error.errno not in FULL:
            raise
        mend = ". Make room and repeat the command: what is finished stays." if error.errno in FULL else "."
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}{mend}") from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def hash_of(body: Any) -> str:
    """sha256 of plain JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_manifest(path: Path, body: Mapping[str, Any]) -> None:
    """Write JSON with a checksum of itself, which `read_manifest` compares."""
    write_atomic(path, json.dumps({**body, "self": hash_of(body)}, indent=1))


def read_manifest(path: Path, mend: str) -> dict[str, Any]:
    """The JSON that `write_manifest` wrote.

    Raises FileNotFoundError, and ValueError (with `mend`: what a user can do) when it cannot be read or was altered.
    """
    body = read_json(path, mend)
    claimed = body.pop("self", None)
    if claimed != hash_of(body):
        raise ValueError(f"{path} was altered: its checksum does not match its content. {mend}")
    return body


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError, and ValueError (with `mend`) for anything else."""
    try:
        body = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}). {mend}") from None
    if not isinstance(body, dict):
        raise ValueError(f"{path} holds a {type(body).__name__}, expected a JSON object. {mend}")
    return body


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def whole(path: Path, entry: Mapping[str, Any], *, content: bool = True) -> str | None:
    """None when a file is what its manifest says, else what is wrong: it is missing, cut short or altered.

    Without `content` only the size is compared.
    """
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"has {size} bytes, not {entry['bytes']}"
    if content and sha256_of(path) != entry["sha256"]:
        return "was altered: its sha256 is not the one that was recorded"
    return None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write a safetensors file one tensor at a time, so that no second copy is made; its entry for a manifest."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # wide types stay aligned
    writers: list[tuple[str, str, list[int], int, Callable[[], memoryview]]] = []
    for name, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        writers.append((name, DTYPES[tensor.dtype], [*tensor.shape], size, lambda tensor=tensor: tensor_bytes(tensor)))
    with replaced(path) as file:
        digest = hashlib.sha256()
        for piece in (safetensors_header([w[:4] for w in writers], notes), *(w[4]() for w in writers)):
            file.write(piece)
            digest.update(piece)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def safetensors_header(tensors: list[tuple[str, str, list[int], int]], notes: Mapping[str, str] | None = None) -> bytes:
    """The head of a safetensors file of (name, dtype, shape, bytes) that follow in this order."""
    header: dict[str, Any] = {"__metadata__": dict(notes)} if notes else {}
    end = 0
    for name, dtype, shape, size in tensors:
        start, end = end, end + size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as they lie in memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def hash_tensors(tensors: Mapping[str, Tensor], head: str = "") -> str:
    """sha256 over a text and the names, types, shapes and bytes of tensors: the one content hash of a module's state."""
    digest = hashlib.sha256(head.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
