"""Reading a store of features: rows of every encoder, larger than memory, checked before they are used.

    STORE/identity.json   what decides the rows: images, encoders, shape, type, seed
    STORE/shard-00000/    features-<encoder>.safetensors {"rows" [k, d]}, thumbnails.safetensors {"rows" [k, c, h, w]}
                          of images (uint8), rows.safetensors {"index", "conditions.*"}, and manifest.json, the sha256
                          and size of each
    STORE/manifest.json   the identity, its address and every shard's files; written last, when all is there

Rows are permuted once, by the seed, so that the first rows are a random sample. A shard appears by one rename and never
changes; its content follows from the identity, so any number of ranks, restarts and repairs make the same files.

Letters: n rows, k rows of a shard or of an index, d features.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F

from irdm.conditions import Conditions, ConditionSpec
from irdm.features import thumbnail_shape
from irdm.files import MANIFEST, hash_of, read_manifest, read_sealed, read_tensors, whole

IDENTITY, ROWS_FILE, CONDITION = "identity.json", "rows.safetensors", "conditions."
THUMBNAILS_FILE, ROWS = "thumbnails.safetensors", "rows"
AGAIN = "Repeat the command that built it: finished shards are kept."


class FeatureStore:
    """A finished store. `store["dinov2"]` are its rows [n, d], read from the disk as they are asked for.

    Opening compares the sizes of all files; the sha256 of a file is compared when it is first read, so no altered byte
    reaches a result. `verify` compares them all.
    """

    def __init__(self, path: Path):
        """Raises ValueError when `path` holds no finished store, or a shard is missing or cut short."""
        self.path = Path(path)
        try:
            manifest = read_manifest(self.path / MANIFEST, AGAIN)
            self.identity: dict[str, Any] = manifest["identity"]
            self.address: str = manifest["address"]
            self.dims: dict[str, int] = manifest["dims"]
            self._shards: list[dict[str, Any]] = manifest["shards"]
            self._count: int = self.identity["images"]["count"]
            rows = sum(record["rows"] for record in self._shards)
            if set(self.dims) != set(self.identity["encoders"]) or rows != self._count:
                raise ValueError(f"{self.path} has other rows or encoders than its identity says. {AGAIN}")
            for shard, record in enumerate(self._shards):
                for name, entry in record["files"].items():
                    if problem := whole(shard_folder(self.path, shard) / name, entry, content=False):
                        raise self._damaged(shard, name, problem)
        except FileNotFoundError:
            what = "an unfinished store" if (self.path / IDENTITY).exists() else "no store"
            raise ValueError(f"{self.path} is {what}: it has no {MANIFEST}. Build it, to its end.") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path / MANIFEST} is no store's ({error!r}). {AGAIN}") from None
        self._open: dict[Path, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self._count

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
        return StoredRows(self, features_file(encoder), (self.dims[encoder],), torch.float32)

    @property
    def thumbnails(self) -> StoredRows | None:
        """The thumbnails [n, c, h, w] of the images, uint8; None where they have none."""
        shape = thumbnail_shape(tuple(self.identity["image_shape"]))
        return None if shape is None else StoredRows(self, THUMBNAILS_FILE, shape, torch.uint8)

    @cached_property
    def conditions(self) -> Conditions:
        """The condition of each row."""
        parts = [self.tensors(shard, ROWS_FILE) for shard in range(len(self._shards))]
        return restored(self.identity["images"]["spec"], len(self), *parts)

    @cached_property
    def index(self) -> Int64[Tensor, " n"]:
        """The number, in the split, of the image behind each row."""
        return torch.cat([self.tensors(shard, ROWS_FILE)["index"] for shard in range(len(self._shards))])

    def verify(self) -> None:
        """Compare the sha256 of every file. Raises ValueError naming the shards, or the claim, that were altered."""
        problems = []
        try:
            altered = hash_of(read_manifest(self.path / IDENTITY, AGAIN)) != hash_of(self.identity)
            problems += [f"{self.path / IDENTITY} is of another store than {MANIFEST}. {AGAIN}"] if altered else []
        except (ValueError, OSError) as error:
            problems.append(str(error))
        for shard, record in enumerate(self._shards):
            try:
                read_sealed(shard_folder(self.path, shard), AGAIN, content=False)
            except ValueError as error:
                problems.append(str(error))
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
            self._open[path] = read_tensors(path, AGAIN)[0]
        return self._open[path]

    def _check(self, shard: int, name: str) -> None:
        if problem := whole(shard_folder(self.path, shard) / name, self._shards[shard]["files"][name]):
            raise self._damaged(shard, name, problem)

    def _damaged(self, shard: int, name: str, problem: str) -> ValueError:
        folder = shard_folder(self.path, shard)
        return ValueError(
            f"{folder / name} {problem}. Delete {folder} and repeat the command that built it: only that is made again."
        )


class StoredRows:
    """A table of a store, such as the features [n, d] of one encoder, as `Rows`: only what is asked for is read."""

    def __init__(self, store: FeatureStore, file: str, shape: tuple[int, ...], dtype: torch.dtype):
        """`file` of a shard, and the shape and type of its rows."""
        self._store, self._file, self._dtype = store, file, dtype
        self.shape = (len(store), *shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor, /) -> Shaped[Tensor, "k ..."]:
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
        rows = torch.empty(len(index), *self.shape[1:], dtype=self._dtype)
        size = self._store.identity["shard_rows"]
        shards = index // size
        for shard in shards.unique().tolist():
            here = (shards == shard).nonzero()[:, 0]
            rows[here] = self._store.tensors(shard, self._file)[ROWS][index[here] - shard * size]
        return rows


def shard_folder(path: Path, shard: int) -> Path:
    """Where a shard lies in the store at `path`."""
    return path / f"shard-{shard:05d}"


def features_file(encoder: str) -> str:
    """The file of a shard that holds the features of an encoder."""
    return f"features-{encoder}.safetensors"


def state_of(conditions: Conditions) -> dict[str, Tensor]:
    """The tensors that conditions are kept as in a file; `restored` reads them."""
    return {f"{CONDITION}{name}": tensor.cpu() for name, tensor in conditions.state.items()}


def restored(spec: Mapping[str, Any], count: int, *parts: Mapping[str, Tensor]) -> Conditions:
    """The conditions of files that follow each other, from the JSON of their spec."""
    names = [name for name in parts[0] if name.startswith(CONDITION)]
    state = {name.removeprefix(CONDITION): _joined([part[name] for part in parts]) for name in names}
    return TypeAdapter(ConditionSpec).validate_python(spec).restore(count, state)


def _joined(parts: list[Tensor]) -> Tensor:
    """The rows of several tables; captions are as wide as the longest of each, and filled up with zeros."""
    width = max(part[0:1].numel() for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1])) if part.ndim == 2 else part for part in parts])
