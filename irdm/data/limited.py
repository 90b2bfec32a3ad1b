"""Some images of a source, for a trial run: a source like any other, with its own fingerprint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from irdm.data.sources import ImageSource
from irdm.ops.sampling import generator_for, sample_indices


class Limited(ImageSource):
    """At most `count` images of a source, drawn at random by `seed`, in their order there; the classes stay its own.

    Raises ValueError for a count below 1.
    """

    def __init__(self, source: ImageSource, count: int, seed: int = 0):
        if count < 1:
            raise ValueError(f"Got a limit of {count} images; expected at least 1.")
        self._source = source
        self._rows = sample_indices(len(source), count, generator_for("limit", seed)).sort().values
        names = [source.names[int(row)] for row in self._rows]
        super().__init__(source.path, names, source.labels[self._rows], source.class_names)

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        return self._source.read(int(self._rows[index]))
