"""Reading a store of features: rows of every encoder, larger than memory, checked before they are used.

    STORE/identity.json   what decides the rows: images, encoders, preprocessing, type, seed
    STORE/shard-00000/    features-<encoder>.safetensors {"features" [k, d]}, rows.safetensors {"labels", "index"} and
                          shard.json, the sha256 and size of each
    STORE/manifest.json   the identity, its address and every shard.json; written last, when all is there

Rows are permuted once, by the seed, so that the first rows are a random sample. A shard appears by one rename and never
changes; its content follows from the identity, so any number of ranks, restarts and repairs make the same files.

Letters: n rows, k rows of a shard or of an index, d features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int64
from safetensors import safe_open
from torch import Tensor

ROWS_FILE = "rows.safetensors"


class FeatureStore:
    """A finished store. `store["dinov2"]` are its rows [n, d], read from the disk as they are asked for.

    Opening compares the sizes of all files; the sha256 of a file is compared when it is first read, so no altered byte
    reaches a result. `verify` compares them all.
    """

    def __init__(self, path: Path):
        """Raises ValueError when `path` holds no finished store, or a shard is missing, cut short or altered."""
        self.path = Path(path)
        manifest = _read_manifest(self.path)
        self.identity: dict[str, Any] = manifest["identity"]
        self.address: str = manifest["address"]
        self.dims: dict[str, int] = manifest["dims"]
        self.class_names = tuple(self.identity["images"]["classes"])
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._open: dict[Path, dict[str, Tensor]] = {}
        for shard, record in enumerate(self._shards):
            for name, file in record["files"].items():
                found = shard_folder(self.path, shard) / name
                size = found.stat().st_size if found.is_file() else None
                if size != file["bytes"]:
                    raise self._damaged(
                        found, "is missing" if size is None else f"has {size} bytes, not {file['bytes']}"
                    )

    def __len__(self) -> int:
        return self.identity["images"]["count"]

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders."""
        return tuple(self.dims)

    def __contains__(self, encoder: str) -> bool:
        return encoder in self.dims

    def __getitem__(self, encoder: str) -> StoredRows:
        """The rows of one encoder. Raises ValueError naming the ones there are."""
        if encoder not in self.dims:
            raise ValueError(
                f"{self.path} has no features of '{encoder}'; it has {sorted(self.dims)}. Build it with them."
            )
        return StoredRows(self, encoder)

    @cached_property
    def labels(self) -> Int64[Tensor, " n"]:
        """The class of each row."""
        return self._column("labels")

    @cached_property
    def index(self) -> Int64[Tensor, " n"]:
        """The number, in the source, of the image behind each row."""
        return self._column("index")

    def verify(self) -> None:
        """Compare the sha256 of every file. Raises ValueError naming the shards that were altered."""
        problems = []
        for shard, record in enumerate(self._shards):
            for name in record["files"]:
                try:
                    self._check(shard, name)
                except ValueError as error:
                    problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))

    def tensors(self, shard: int, name: str) -> dict[str, Tensor]:
        """The tensors of one file of one shard, mapped into memory after its sha256 was compared."""
        path = shard_folder(self.path, shard) / name
        if path not in self._open:
            self._check(shard, name)
            with safe_open(path, framework="pt") as file:
                self._open[path] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return self._open[path]

    def _check(self, shard: int, name: str) -> None:
        path, digest = shard_folder(self.path, shard) / name, hashlib.sha256()
        if not path.is_file():
            raise self._damaged(path, "is missing")
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != self._shards[shard]["files"][name]["sha256"]:
            raise self._damaged(path, "was altered: its sha256 is not the manifest's")

    def _column(self, name: str) -> Tensor:
        return torch.cat([self.tensors(shard, ROWS_FILE)[name] for shard in range(len(self._shards))])

    def _damaged(self, path: Path, what: str) -> ValueError:
        return ValueError(f"{path} {what}. Delete {path.parent} and rebuild the store: only that shard is made again.")


class StoredRows:
    """The float32 features [n, d] of one encoder, as `irdm.ops.rows.Rows`: only what is asked for is read."""

    def __init__(self, store: FeatureStore, encoder: str):
        self._store, self._file = store, f"features-{encoder}.safetensors"
        self.shape = (len(store), store.dims[encoder])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor, /) -> Float32[Tensor, "k d"]:
        """A copy of the rows of a slice or of an integer index tensor [k], in its order.

        Raises IndexError for a row that is not there, TypeError for an index of another kind, ValueError for a shard
        that is missing or altered.
        """
        if isinstance(index, slice):
            span = range(*index.indices(len(self)))
            index = span.start + span.step * torch.arange(len(span))
        if index.ndim != 1 or index.dtype.is_floating_point or index.dtype == torch.bool:
            raise TypeError(f"Got an index {index.dtype} {list(index.shape)}, expected a slice or integers [k].")
        index = index.to("cpu", torch.int64)
        if len(index) and not -len(self) <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(
                f"Rows {int(index.min())} to {int(index.max())} were asked of a store of {len(self)} rows."
            )
        index = index % len(self)
        rows = torch.empty(len(index), self.shape[1])
        size = self._store.identity["shard_rows"]
        shards = index // size
        for shard in shards.unique().tolist():
            here = (shards == shard).nonzero()[:, 0]
            rows[here] = self._store.tensors(shard, self._file)["features"][index[here] - shard * size]
        return rows


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, its own checksum compared."""
    file = path / "manifest.json"
    try:
        body = json.loads(file.read_text())
        claimed = body.pop("self")
    except FileNotFoundError:
        what = "an unfinished store" if (path / "identity.json").exists() else "no store"
        raise ValueError(f"{path} is {what}: it has no manifest.json. Build it, to its end.") from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}). Delete that file and rebuild: the shards are kept."
        ) from error
    if claimed != hashlib.sha256(canonical(body)).hexdigest():
        raise ValueError(f"{file} was altered: its checksum does not match. Delete that file and rebuild.")
    return body


def shard_folder(path: Path, shard: int) -> Path:
    """Where a shard lies in the store at `path`."""
    return path / f"shard-{shard:05d}"


def canonical(body: Mapping[str, Any]) -> bytes:
    """One text for one content, to be hashed."""
    return json.dumps(body, sort_keys=True).encode()
