"""Files that are whole or absent, noticed when damaged, and never written by two processes at once.

One writer, one lock, one manifest, one sealed folder: used by checkpoints, stores, references, caches and runs.
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
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

LOCK, MANIFEST = ".lock", "manifest.json"
PARTIAL = re.compile(r"\..+\.\d+\.partial")
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_dir() -> Path:
    """Where fitted encoders and text embeddings are kept: $IRDM_CACHE, else ~/.cache/irdm."""
    return Path(os.environ.get("IRDM_CACHE") or Path.home() / ".cache" / "irdm")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or this program after a crash, sees the old one or the whole new one.

    Raises OSError naming the file, with nothing left behind.
    """
    with replaced(path) as file:
        file.write(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)


@contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written that takes the place of `path` when the block ends well, and else leaves no trace."""
    partial = _partial(path)
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
    """An empty folder to be filled that takes the place of `path` when the block ends well, else leaves no trace."""
    partial = _partial(path)
    with _naming(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            sync_folder(partial)
            remove(path)
            os.replace(partial, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def sealed_folder(path: Path, body: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A `replaced_folder` with a manifest: the record {**body, "files": {name: entry}} that the block fills.

    Yields the folder to write in and the record; `read_sealed` compares the two. Checkpoints, shards of stores and
    parts of references are such folders: each holds its own hashes from the moment that it appears.
    """
    record = {**body, "files": {}}
    with replaced_folder(path) as folder:
        yield folder, record
        write_manifest(folder / MANIFEST, record)


def read_sealed(path: Path, mend: str, *, content: bool = True) -> dict[str, Any]:
    """The record of a sealed folder, after its files were compared with it; without `content` only their sizes.

    Raises ValueError naming the file that is missing, cut short or altered, with `mend`: what a user can do.
    """
    try:
        record = read_manifest(path / MANIFEST, mend)
        for name, entry in record["files"].items():
            if problem := whole(path / name, entry, content=content):
                raise ValueError(f"{path / name} {problem}. {mend}")
    except FileNotFoundError:
        raise ValueError(f"{path / MANIFEST} is missing. {mend}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / MANIFEST} is no manifest of this program ({error!r}). {mend}") from None
    return record


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk: a rename is lost in a power cut otherwise."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, doing: str = "used") -> Iterator[None]:
    """Hold the directory `path`, made if need be, as its only writer; the system lets go when the process dies.

    What killed holders left half-written in it is cleared away first. Raises ValueError naming the process that holds
    it now, OSError when it cannot be written.
    """
    with _naming(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / LOCK, "a+")  # noqa: SIM115 (held to the end of the block)
    with lock:
        with _naming(path):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise ValueError(
                    f"{path} is being {doing} by {lock.read().strip() or 'another process'}. Wait until that has "
                    "finished, or give another directory."
                ) from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}")
            lock.flush()
            clear_partial(path)
        yield


def clear_partial(path: Path, older: float = 0.0) -> None:
    """Remove what killed processes left half-written below a directory.

    Where other processes may be writing, as in a cache, give an age in seconds beyond which nobody is.
    """
    before = time.time() - older
    for folder, folders, files in os.walk(path):
        for name in filter(PARTIAL.fullmatch, [*folders, *files]):
            with suppress(FileNotFoundError):  # its writer has finished since it was listed
                if Path(folder, name).lstat().st_mtime <= before:
                    remove(Path(folder, name))
        folders[:] = [name for name in folders if not PARTIAL.fullmatch(name)]


def visible(path: Path) -> list[str]:
    """The names in a directory but hidden ones; none when it is not there."""
    return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")) if path.is_dir() else []


@contextmanager
def claimed(path: Path, name: str, identity: Mapping[str, Any], kind: str) -> Iterator[None]:
    """Hold the directory `path` as its only builder, and as that of an identity, which is kept in the file `name`.

    Raises ValueError when it holds something else, which is left alone, or another process is building it.
    """
    there, mend = visible(path), f"Choose another directory, or delete this {kind}."
    if there and name not in there:
        raise ValueError(f"{path} holds {there[0]} and is no {kind}; choose an empty or a new directory.")
    with locked(path, "built"):
        try:
            found = read_manifest(path / name, mend)
        except FileNotFoundError:
            found = None
        except ValueError:
            # The folders inside say what they are part of: a damaged claim need not cost them.
            if hash_of(identity) not in {_part_of(file) for file in path.rglob(MANIFEST)}:
                raise
            found = None
        if found is None:
            write_manifest(path / name, identity)
        elif odd := [
            k for k in dict.fromkeys([*identity, *found]) if hash_of(found.get(k)) != hash_of(identity.get(k))
        ]:
            lines = [f"  {key}: {_short(found.get(key))} there, {_short(identity.get(key))} now" for key in odd]
            raise ValueError("\n".join([f"{path} is a {kind} of something else:", *lines, mend]))
        yield


def _part_of(manifest: Path) -> object:
    try:
        return read_manifest(manifest, "").get("of")
    except (OSError, ValueError):
        return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _partial(path: Path) -> Path:
    """Where what will be `path` is written by this process."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the system about `path` name it and, for a full disk, say what helps; those about others pass."""
    try:
        yield
    except OSError as error:
        about = os.fsdecode(error.filename) if error.filename is not None else str(path)
        if path.name not in about and not path.is_relative_to(about):
            raise
        what = os.strerror(error.errno) if error.errno else str(error)
        mend = ". Make room and repeat the command: what is finished stays." if error.errno in FULL else "."
        raise OSError(error.errno, f"{path} could not be written: {what}{mend}") from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def hash_of(body: Any) -> str:
    """sha256 of plain JSON, whatever the order of its keys."""
    plain = json.loads(json.dumps(body))  # as a reader will see it: keys are text
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


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
    """Write a safetensors file one tensor at a time, so that no second copy is made; its entry for a manifest.

    Raises ValueError for a tensor of a type that safetensors files do not have.
    """
    if odd := [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if tensor.dtype not in DTYPES]:
        raise ValueError(f"{path} cannot hold {', '.join(odd)}; expected one of {', '.join(map(str, DTYPES))}.")
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # wide types stay aligned
    header = [(name, DTYPES[t.dtype], [*t.shape], t.numel() * t.element_size()) for name, t in ordered]
    with replaced(path) as file:
        writer = Digested(file)
        writer.write(safetensors_header(header, notes))
        for _, tensor in ordered:
            writer.write(tensor_bytes(tensor))
        return writer.entry()


class Digested:
    """A file that is hashed as it is written."""

    def __init__(self, file: IO[bytes]):
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Append some bytes."""
        self._file.write(data)
        self._digest.update(data)

    def entry(self) -> dict[str, Any]:
        """What a manifest says of the file, all of it written."""
        return {"bytes": self._file.tell(), "sha256": self._digest.hexdigest()}


def read_tensors(path: Path, mend: str, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its notes; on the CPU they are mapped, and read as they are used.

    Raises ValueError (with `mend`) when it is missing or no such file.
    """
    try:
        if str(path).encode(errors="replace").decode() != str(path):
            tensors, notes = parse_tensors(path.read_bytes())  # a name that is no UTF-8, which safe_open does not take
            return {name: tensor.to(device) for name, tensor in tensors.items()}, notes
        with safe_open(path, framework="pt", device=device) as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as tensors ({error}). {mend}") from None


def parse_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the notes in the bytes of a safetensors file. Raises SafetensorError when they are none."""
    tensors, size = load(data), int.from_bytes(data[:8], "little")
    return tensors, json.loads(data[8 : 8 + size]).get("__metadata__", {})


def unpickled(path: Path, mmap: bool = False) -> Any:
    """What a PyTorch file holds, on the CPU, read without running any code in it. Raises ValueError otherwise."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as tensors alone ({reason}). It is damaged, or holds code, which is never run. "
            "Fetch it again, or save it as safetensors."
        ) from None


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
    """sha256 over a text and the names, types, shapes and bytes of tensors: the content hash of a module's state."""
    digest = hashlib.sha256(head.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How tensors that were read differ from those that are expected, in names, types or shapes; empty when not."""
    looks = [{name: f"{t.dtype} {list(t.shape)}" for name, t in side.items()} for side in (found, expected)]
    return [
        f"{name}: {looks[0].get(name, 'missing')}, expected {looks[1].get(name, 'none of this name')}"
        for name in sorted({**found, **expected})
        if looks[0].get(name) != looks[1].get(name)
    ]
