"""Building a store of features: images -> every encoder -> shards, by any number of processes.

What a store holds is described in `irdm.store.reader`. Letters: n rows, k rows of a shard, d features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

import PIL
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from irdm.data.base import Split
from irdm.distributed import Ranks
from irdm.encoders.base import encoder_identity
from irdm.files import (
    MANIFEST,
    Digested,
    claimed,
    hash_of,
    read_sealed,
    replaced,
    safetensors_header,
    sealed_folder,
    tensor_bytes,
    write_manifest,
    write_tensors,
)
from irdm.metrics.tables import row_order
from irdm.progress import Meter, Say, silent
from irdm.store.engine import Embedded, Engine, Spent, plain
from irdm.store.reader import (
    IDENTITY,
    ROWS,
    ROWS_FILE,
    THUMBNAILS_FILE,
    FeatureStore,
    features_file,
    shard_folder,
    state_of,
)

SHARD_ROWS = 65_536
FORMAT = 3  # part of the identity: raise it when the files of one identity change


def build_store(
    split: Split,
    encoders: Mapping[str, nn.Module],
    path: Path,
    *,
    seed: int = 0,
    micro_batch: int = 256,
    device: str = "cpu",
    ranks: Ranks | None = None,
    progress: Say | None = None,
    identity: Mapping[str, str] | None = None,
    shard_rows: int = SHARD_ROWS,
    thorough: bool = False,
    engine: Engine = plain,
) -> FeatureStore:
    """The features of every image under every encoder, in the directory `path`; whole shards that are there are kept.

    Interrupted or killed, the same call goes on at the next missing shard. A shard is kept when the sha256 of each of
    its files is the one that it recorded. Under torchrun every rank calls this and takes whole shards; no row is
    dropped or repeated, and the files are the same for any number of ranks. Memory is that of two micro-batches,
    whatever the number of images.

    Args:
        split: the images.
        encoders: {name: frozen module from images [n, c, h, w] in [0, 1] to features [n, d]}, on `device`.
        path: the store's directory, on a file system that all ranks share.
        seed: of the permutation of the rows.
        micro_batch: images that are read and embedded at once, fewer where they are very large; changes memory and, to
            rounding, features.
        device: where the encoders are.
        ranks: this process among its peers.
        progress: receives a line of text every few seconds.
        identity: {encoder: what decides its features}; None is their `encoder_identity`.
        shard_rows: rows of a shard.
        thorough: compare the sha256 of every file even of a finished store, where otherwise sizes are compared.
        engine: what reads and embeds; no byte of the store depends on it.

    Raises:
        ValueError: when an argument is out of range, `path` holds something else, another process is building it, an
            image cannot be used, or an encoder gives NaN or infinity.
        OSError: when the disk is full or cannot be written; finished shards stay.
    """
    if micro_batch < 1 or shard_rows < 1:
        raise ValueError(f"Got micro_batch {micro_batch} and shard_rows {shard_rows}; expected at least 1 of each.")
    path, ranks, say, micro_batch = Path(path), ranks or Ranks(), progress or silent, split.at_once(micro_batch)
    if ranks.size > 1 and engine is not plain:
        raise ValueError(
            f"The ray engine is started once, and this is one of {ranks.size} processes; leave torchrun out."
        )
    what = store_identity(split, encoders, seed=seed, identity=identity, shard_rows=shard_rows)
    address, finished = hash_of(what), False
    with ExitStack() as held:
        with ranks.together():
            if ranks.is_main:
                finished = _finished(path, what, thorough)
            if ranks.is_main and not finished:
                held.enter_context(claimed(path, IDENTITY, what, "store"))
        if ranks.any(finished):
            return FeatureStore(path)
        with ranks.together():
            order = row_order(len(split), seed).split(shard_rows)
            own = range(ranks.rank, len(order), ranks.size)
            todo = [shard for shard in own if not _kept(shard_folder(path, shard), address, say)]
        with ranks.together():
            if ranks.is_main:
                (path / MANIFEST).unlink(missing_ok=True)
            count = Meter("features", sum(len(order[shard]) for shard in todo), "images", say)
            spent, blocks = Spent(), {shard: order[shard].split(micro_batch) for shard in todo}
            made = engine(split, encoders, [block for shard in todo for block in blocks[shard]], device)

            def counted(done: Embedded, images: int) -> None:
                spent.add(images, done.seconds)
                count(images)

            for shard in todo:
                folder, part = shard_folder(path, shard), islice(made, len(blocks[shard]))
                _write_shard(folder, address, order[shard], split, part, counted)
            if todo:
                say(str(spent))
        with ranks.together():
            if ranks.is_main:
                _write_manifest(path, what, len(order))
    return FeatureStore(path)


def store_identity(
    split: Split,
    encoders: Mapping[str, nn.Module],
    *,
    seed: int = 0,
    identity: Mapping[str, str] | None = None,
    shard_rows: int = SHARD_ROWS,
) -> dict[str, Any]:
    """Everything that decides the content of a store, as plain JSON; its `hash_of` is the store's address.

    Raises ValueError for no image, no encoder, a name that cannot be a file's, or an identity that names others.
    """
    if not len(split):
        raise ValueError(f"{split.name} holds no images.")
    if not encoders or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) for name in encoders):
        raise ValueError(f"Got the encoders {list(encoders)}; expected names of letters, digits, '_', '-' and '.'.")
    if identity is not None and set(identity) != set(encoders):
        raise ValueError(f"identity names {sorted(identity)}, expected exactly the encoders {sorted(encoders)}.")
    return {
        "format": FORMAT,
        "images": {"count": len(split), "fingerprint": split.fingerprint, "spec": split.conditions.spec.identity()},
        "image_shape": list(split.image_shape),
        "encoders": {name: identity[name] if identity else encoder_identity(encoders[name]) for name in encoders},
        "dtype": "float32",
        "seed": seed,
        "shard_rows": shard_rows,
    }


class _Table:
    """A safetensors file of one table of rows, float32 or uint8, written a few rows at a time: a shard is too large."""

    def __init__(self, file: IO[bytes], rows: int, first: Tensor):
        """`first` are some rows, as all will be."""
        self._file = Digested(file)
        kind, size = ("U8", 1) if first.dtype == torch.uint8 else ("F32", 4)
        head = (ROWS, kind, [rows, *first.shape[1:]], size * rows * first[0].numel())
        self._file.write(safetensors_header([head]))
        self.entry = self._file.entry

    def append(self, block: Tensor) -> None:
        self._file.write(tensor_bytes(block if block.dtype == torch.uint8 else block.float()))


def _write_shard(
    folder: Path,
    address: str,
    rows: Int64[Tensor, " k"],
    split: Split,
    blocks: Iterable[Embedded],
    count: Callable[[Embedded, int], None],
) -> None:
    """The shard of these images of the split, from its blocks in their order."""
    tables: dict[str, _Table] = {}
    dims: dict[str, int] = {}
    with sealed_folder(folder, {"of": address, "rows": len(rows)}) as (partial, record), ExitStack() as files:
        for done in blocks:
            made = {features_file(name): features for name, features in done.features.items()}
            if done.thumbnails is not None:
                made[THUMBNAILS_FILE] = done.thumbnails
            dims = {name: features.shape[1] for name, features in done.features.items()}
            for name, block in made.items():
                if name not in tables:
                    tables[name] = _Table(files.enter_context(replaced(partial / name)), len(rows), block)
                tables[name].append(block)
            count(done, len(next(iter(done.features.values()))))
        record["dims"] = dims
        record["files"] = {name: table.entry() for name, table in tables.items()}
        about = {"index": rows.clone(), **state_of(split.conditions[rows])}
        record["files"][ROWS_FILE] = write_tensors(partial / ROWS_FILE, about)


def _finished(path: Path, identity: dict[str, Any], thorough: bool) -> bool:
    """Whether the store is there, is of this identity, and no file of it is missing or cut short."""
    try:
        store = FeatureStore(path)
        if thorough:
            store.verify()
        return store.identity == identity
    except ValueError:
        return False  # it is built or repaired


def _kept(folder: Path, address: str, say: Say) -> bool:
    """Whether a shard is there, whole to the byte, and of this store."""
    if not folder.exists():
        return False
    try:
        if read_sealed(folder, "It is made again.").get("of") == address:
            return True
        say(f"{folder} is of another store. It is made again.")
    except ValueError as error:
        say(str(error))
    return False


def _write_manifest(path: Path, identity: dict[str, Any], count: int) -> None:
    """Say that the store is whole."""
    records = [read_sealed(shard_folder(path, shard), "Repeat the command.", content=False) for shard in range(count)]
    dims = records[0]["dims"]
    if set(dims) != set(identity["encoders"]) or any(record["dims"] != dims for record in records):
        raise ValueError(f"The shards of {path} have features of unlike widths or encoders; delete it and build again.")
    body = {
        "identity": identity,
        "address": hash_of(identity),
        "dims": {name: dims[name] for name in identity["encoders"]},
        "shards": [{"rows": record["rows"], "files": record["files"]} for record in records],
        "versions": {"torch": str(torch.__version__), "pillow": PIL.__version__},
    }
    write_manifest(path / MANIFEST, body)
