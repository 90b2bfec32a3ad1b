"""The captioned world (`irdm.world`): pictures of shapes with captions, made from a seed, with no file.

Letters: n rows.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from irdm.conditions import Prompts, PromptSpec
from irdm.data.base import Dataset, SplitConfig, split_dataset
from irdm.world import CATEGORIES, EMBEDDER, captions_of, embed, make

SHOWN = 2  # captions of each category in sample grids


class WorldConfig(SplitConfig):
    """One to four coloured shapes in 2x2 cells, [n, 3, 16, 16], with plain captions of GenEval's six categories.

    The categories are the sources of the rows, so that draws hold them in proportion. tau says what a caption means: it
    is the same for all ways to say it.
    """

    kind: Literal["world"] = "world"
    """Name of this kind of dataset."""
    rows: int = Field(default=24_576, ge=60, le=10_000_000)
    """Pictures of train and val together."""
    side: Literal["seen", "held-out"] = "seen"
    """Compositions: those to train on, or those that no training caption has."""
    mix: tuple[str, ...] = Field(default=CATEGORIES, min_length=1, max_length=60)
    """Categories of the rows, which take turns: one that is named twice is twice as frequent."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the captions and of the pictures."""

    @field_validator("mix")
    @classmethod
    def _known(cls, mix: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted({*mix} - {*CATEGORIES}):
            raise ValueError(f"There is no category {', '.join(unknown)}; choose from {', '.join(CATEGORIES)}.")
        return mix

    def build(self) -> Dataset:
        """Train and val of one law: independent pictures of the same captions."""
        images, captions, source = make(self.rows, self.seed, self.side, self.mix)
        tau, by_category = embed(captions), captions_of(self.side)
        sources = tuple(category for category in CATEGORIES if category in self.mix)
        source = source.unique(return_inverse=True)[1]
        shown = examples({category: by_category[category] for category in sources})
        spec = PromptSpec(embedder=EMBEDDER, width=tau.shape[1], sources=sources, examples=shown)
        return split_dataset("world", images, Prompts(captions, tau, source, spec), self)


def examples(by_category) -> tuple[str, ...]:
    """Some captions of each category, of compositions far apart."""
    return tuple(asks[len(asks) * part // SHOWN][1][part] for asks in by_category.values() for part in range(SHOWN))
