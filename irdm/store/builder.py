"""Building a store of features: images -> one decode -> every encoder -> shards, by any number of processes.

What a store holds is described in `irdm.store.reader`. Letters: n rows, k rows of a shard, d features.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import PIL
import torch
from jaxtyping import Float32, Int64
from safetensors.torch import save
from torch import Tensor, nn

from irdm.checkpoint import claimed, resumable, write_atomic
from irdm.data.decode import PREPROCESSING
from irdm.data.sources import ImageSource
from irdm.distributed import Ranks
from irdm.features import extract
from irdm.ops.sampling import generator_for
from irdm.store.reader import ROWS_FILE, FeatureStore, canonical, shard_folder

SHARD_ROWS = 65_536
FORMAT = 1  # part of the identity: raise it when the files of one identity change


def build_store(
    source: ImageSource,
    encoders: Mapping[str, nn.Module],
    path: Path,
    *,
    size: int,
    seed: int = 0,
    micro_batch: int = 256,
    device: str = "cpu",
    ranks: Ranks | None = None,
    progress: Callable[[str], None] | None = None,
    identity: Mapping[str, str] | None = None,
    shard_rows: int = SHARD_ROWS,
) -> FeatureStore:
    """The features of every image under every encoder, in the directory `path`; shards that are there are kept.

    Interrupted or killed, the same call goes on at the next missing shard. Under torchrun every rank calls this and
    takes whole shards; no row is dropped or repeated, and the files are the same for any number of ranks. Memory is
    that of two micro-batches, whatever the number of images.

    Args:
        source: the images.
        encoders: {name: frozen module from images [n, 3, size, size] in [0, 1] to features [n, d]}, on `device`.
        path: the store's directory, on a file system that all ranks share.
        size: side of the centre crop in pixels.
        seed: of the permutation of the rows.
        micro_batch: images that are decoded and embedded at once; changes memory and, to rounding, features.
        device: where the encoders are.
        ranks: this process among its peers.
        progress: receives a line of text every few seconds.
        identity: {encoder: what decides its features, such as the hash of its weight file}; None hashes the weights.
        shard_rows: rows of a shard.

    Raises:
        ValueError: when `path` holds something else, another process is building it, an image cannot be used (all such
            images are named), or an encoder gives NaN or infinity.
        OSError: when the disk is full or cannot be written; finished shards stay.
    """
    path, ranks, say = Path(path), ranks or Ranks(), progress or (lambda text: None)
    say(f"reading {len(source)} images for their fingerprint")
    what = store_identity(source, encoders, size=size, seed=seed, identity=identity, shard_rows=shard_rows)
    if ranks.any(ranks.is_main and _finished(path, what), device):
        return FeatureStore(path)
    with _claimed(path, what) if ranks.is_main else nullcontext():
        ranks.barrier()  # the main rank has claimed the directory
        order = torch.randperm(len(source), generator=generator_for("store", seed)).split(shard_rows)
        todo = [shard for shard in range(ranks.rank, len(order), ranks.size) if not _record(shard_folder(path, shard))]
        count = _Counter(sum(len(order[shard]) for shard in todo), say)
        for shard in todo:
            folder = shard_folder(path, shard)
            with resumable(folder, "shards"):
                _write_shard(folder, order[shard], source, encoders, size, micro_batch, device, count)
        if ranks.is_main and not (path / "manifest.json").exists():
            _write_manifest(path, what, len(order))
        while not (path / "manifest.json").exists():  # no barrier: it would time out while a peer finishes its shard
            time.sleep(0.1)
    return FeatureStore(path)


def store_identity(
    source: ImageSource,
    encoders: Mapping[str, nn.Module],
    *,
    size: int,
    seed: int = 0,
    identity: Mapping[str, str] | None = None,
    shard_rows: int = SHARD_ROWS,
) -> dict[str, Any]:
    """Everything that decides the content of a store, as plain JSON. Arguments as for `build_store`.

    Raises ValueError for no encoder, a name that cannot be a file's, or an identity that names other encoders.
    """
    if not encoders or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) for name in encoders):
        raise ValueError(f"Got the encoders {list(encoders)}; expected names of letters, digits, '_', '-' and '.'.")
    if identity is not None and set(identity) != set(encoders):
        raise ValueError(f"identity names {sorted(identity)}, expected exactly the encoders {sorted(encoders)}.")
    return {
        "format": FORMAT,
        "images": {"count": len(source), "fingerprint": source.fingerprint, "classes": list(source.class_names)},
        "encoders": {name: identity[name] if identity else weights_identity(encoders[name]) for name in encoders},
        "preprocessing": {"crop": PREPROCESSING, "size": size},
        "dtype": "float32",
        "seed": seed,
        "shard_rows": shard_rows,
    }


def store_address(identity: Mapping[str, Any]) -> str:
    """sha256 of a store's identity: a name under which a cache can keep it."""
    return hashlib.sha256(canonical(identity)).hexdigest()


def weights_identity(module: nn.Module) -> str:
    """sha256 of a module's printed structure and of every parameter and buffer in its state."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Matrix:
    """A safetensors file of one float32 matrix, written a few rows at a time so that a shard need not fit in memory."""

    def __init__(self, file: BinaryIO, rows: int, columns: int):
        self._file, self._digest = file, hashlib.sha256()
        self.columns = columns
        entry = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]}
        header = json.dumps({"features": entry}).encode()
        header += b" " * (-len(header) % 8)
        self._put(len(header).to_bytes(8, "little") + header)

    def append(self, block: Float32[Tensor, "k d"]) -> None:
        self._put(block.cpu().numpy().astype("<f4").tobytes())

    def finish(self) -> dict[str, Any]:
        """Bring everything to the disk; the file's entry of the manifest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"sha256": self._digest.hexdigest(), "bytes": self._file.tell()}

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)


class _Counter:
    """Says how many images of a total are done, how many a second, and how long the rest takes."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self._total, self._say, self._done = total, say, 0
        self._began = self._said = time.monotonic()

    def __call__(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if now - self._said >= 5 or self._done == self._total:
            self._said = now
            rate = self._done / max(now - self._began, 1e-9)
            left = (self._total - self._done) / rate
            minutes = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
            self._say(f"features of {self._done} / {self._total} images, {rate:.0f} images/s, {minutes} left")


def _write_shard(
    folder: Path,
    rows: Int64[Tensor, " k"],
    source: ImageSource,
    encoders: Mapping[str, nn.Module],
    size: int,
    micro_batch: int,
    device: str,
    count: Callable[[int], None],
) -> None:
    """The shard of these images of the source, in this order, under a hidden name until it is whole."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial.mkdir()
    matrices: dict[str, _Matrix] = {}
    try:
        with ExitStack() as stack:
            images = stack.enter_context(closing(source.decoded(rows.tolist(), size, micro_batch)))
            while batch := list(islice(images, micro_batch)):
                pixels = torch.stack(batch).to(device).float() / 255
                for name, features in extract(encoders, pixels, micro_batch).items():
                    if name not in matrices:
                        file = stack.enter_context(open(partial / f"features-{name}.safetensors", "wb"))
                        matrices[name] = _Matrix(file, len(rows), features.shape[1])
                    matrices[name].append(features)
                count(len(batch))
            files = {f"features-{name}.safetensors": matrix.finish() for name, matrix in matrices.items()}
        data = save({"labels": source.labels[rows], "index": rows.clone()})
        write_atomic(partial / ROWS_FILE, data)
        files[ROWS_FILE] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        dims = {name: matrix.columns for name, matrix in matrices.items()}
        write_atomic(partial / "shard.json", json.dumps({"rows": len(rows), "dims": dims, "files": files}, indent=1))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _claimed(path: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Hold the directory of an unfinished store as its only builder, with what a killed builder left cleared away."""
    path.mkdir(parents=True, exist_ok=True)
    claim = path / "identity.json"
    there = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    if there and claim.name not in there:
        raise ValueError(f"{path} holds {there[0]} and is no store; choose an empty or a new directory.")
    with claimed(path):
        if claim.exists() and (found := json.loads(claim.read_text())) != identity:
            odd = [key for key in identity if found.get(key) != identity[key]]
            has, wanted = (json.dumps({key: where.get(key) for key in odd})[:400] for where in (found, identity))
            raise ValueError(
                f"{path} is a store of something else: it has {has}, expected {wanted}. Choose another directory, or "
                "delete this one."
            )
        write_atomic(claim, json.dumps(identity, indent=1))
        if not _finished(path, identity):
            (path / "manifest.json").unlink(missing_ok=True)
        for left in path.glob(".shard-*"):
            shutil.rmtree(left)
        yield


def _finished(path: Path, identity: dict[str, Any]) -> bool:
    """Whether the store is there, is of this identity, and no file of it is missing or cut short."""
    if not (path / "manifest.json").exists():
        return False
    try:
        return FeatureStore(path).identity == identity
    except ValueError:
        return False  # it is repaired


def _record(folder: Path) -> dict[str, Any] | None:
    """What shard.json says of a shard, or None unless all its files are there in full length."""
    try:
        record = json.loads((folder / "shard.json").read_text())
        whole = all((folder / name).stat().st_size == file["bytes"] for name, file in record["files"].items())
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return record if whole else None


def _write_manifest(path: Path, identity: dict[str, Any], count: int) -> None:
    """Wait until every rank has written its shards, then say that the store is whole."""
    records: list[dict[str, Any]] = []
    while len(records) < count:
        if record := _record(shard_folder(path, len(records))):
            records.append(record)
        else:
            time.sleep(0.1)
    body: dict[str, Any] = {"identity": identity, "address": store_address(identity), "dims": records[0]["dims"]}
    body["shards"] = [{"rows": record["rows"], "files": record["files"]} for record in records]
    body["versions"] = {"torch": str(torch.__version__), "pillow": PIL.__version__}
    body["self"] = hashlib.sha256(canonical(body)).hexdigest()
    write_atomic(path / "manifest.json", json.dumps(body, indent=1))
