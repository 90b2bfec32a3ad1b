"""Judged images that are real ones: of train, which is copying, or of val, which is what they are judged by."""

from __future__ import annotations

from typing import NamedTuple

from irdm.metrics.copies import among
from irdm.metrics.tables import Real, Table


class Overlap(NamedTuple):
    """How many of the judged images are real ones to the pixel, as far as thumbnails tell and tables reach."""

    judged: int
    in_train: int
    in_val: int

    def says(self) -> list[str]:
        """What a reader must know of it; the first concerns every score."""
        found = []
        if self.in_val:
            found.append(
                f"{self.in_val} of the {self.judged} judged images are held-out real images themselves, which every "
                "score compares with: they flatter it. Take them out, or judge against other held-out images."
            )
        if self.in_train:
            found.append(f"{self.in_train} of the {self.judged} judged images are train images, to the pixel.")
        return found


def overlap(generated: Table, real: Real) -> Overlap:
    """Count them; none where there are no thumbnails. Raises ValueError when all judged images are val images."""
    counts = {}
    for side, table in (("train", real.train), ("val", real.val)):
        pictures, known = generated.thumbnails, table.thumbnails
        counts[side] = 0 if pictures is None or known is None else int(among(pictures, known).sum())
    if counts["val"] == len(generated):
        raise ValueError(
            f"All {len(generated)} judged images are held-out real images of what they are compared with, so that "
            "nothing can be said of them. Judge other images, or compare with a reference that holds out others."
        )
    return Overlap(len(generated), counts["train"], counts["val"])
