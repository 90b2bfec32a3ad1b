"""Texts as tensors: what captions are where everything else is one.

Letters: n texts, b bytes of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor


def to_bytes(texts: Sequence[str]) -> UInt8[Tensor, "n b"]:
    """Each text in UTF-8, filled up with zeros to the longest. Raises ValueError for one that cannot be kept so."""
    if bad := [text for text in texts if "\0" in text]:
        raise ValueError(f"The text {bad[0]!r} holds a character zero; take it out.")
    encoded = [text.encode() for text in texts]
    width = max(map(len, encoded), default=0) or 1
    return torch.from_numpy(np.array(encoded, dtype=f"S{width}").view(np.uint8).reshape(len(encoded), width).copy())


def to_texts(texts: UInt8[Tensor, "n b"]) -> list[str]:
    """The texts that `to_bytes` was given."""
    return [row.tobytes().rstrip(b"\0").decode() for row in texts.cpu().numpy()]
