"""The real side of an evaluation on disk, and what identifies it, on disk or in memory.

Letters: n train rows, v val rows, d features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float32
from torch import Tensor

from irdm.data.base import Dataset
from irdm.files import sealed_folder, write_tensors
from irdm.ops.gaussian import Moments
from irdm.ops.rows import Rows, row_blocks

FILE = "real.safetensors"


def real_identity(
    dataset: Dataset, encoders: Mapping[str, str], held_out: Sequence[str], *, table_rows: int, seed: int
) -> dict[str, Any]:
    """What decides the real side of an evaluation, as plain JSON: `Real.identity`.

    Args:
        dataset: the real images.
        encoders: {name: `encoder_identity`}.
        held_out: those of them that train no generator.
        table_rows: at most this many rows of train and of val are compared with.
        seed: of the order of the rows.
    """
    sides = {"train": dataset.train, "val": dataset.val}
    resized = dataset.train.resized or dataset.val.resized
    return {
        **{name: {"count": len(split), "fingerprint": split.fingerprint} for name, split in sides.items()},
        "image_shape": list(dataset.image_shape),
        "encoders": dict(encoders),
        "held_out": list(held_out),
        "table_rows": table_rows,
        "seed": seed,
        **({"resized": resized} if resized else {}),
    }


def write_real(folder: Path, of: str, train: Rows, val: Rows, *, table_rows: int, device: str = "cpu") -> None:
    """The real side under one encoder: the first rows of train and of val, and the moments of all train rows."""
    moments = Moments.of(block.to(device) for block in row_blocks(train))
    tensors = {f"moments.{name}": tensor for name, tensor in moments.state_dict().items()}
    tensors |= {name: rows[0 : min(len(rows), table_rows)] for name, rows in (("train", train), ("val", val))}
    with sealed_folder(folder, {"of": of}) as (partial, record):
        record["files"][FILE] = write_tensors(partial / FILE, tensors)


class StoredReal(NamedTuple):
    """What `write_real` wrote."""

    train: Float32[Tensor, "n d"]
    val: Float32[Tensor, "v d"]
    moments: Moments


def read_real(tensors: Mapping[str, Tensor]) -> StoredReal:
    """The real side under one encoder, from the tensors of its file."""
    moments = {name.removeprefix("moments."): tensor for name, tensor in tensors.items() if name.startswith("moments.")}
    return StoredReal(tensors["train"], tensors["val"], Moments.load(moments))
