"""Images with captions, from one place or several at stated shares: what a text-to-image generator learns.

Letters: n rows, c columns of tau.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int64
from pydantic import Field, model_validator
from torch import Tensor

from irdm.conditions import Prompts, PromptSpec
from irdm.config import free
from irdm.data.base import Dataset, SplitConfig, split_rows, unshared
from irdm.data.captions import captions_of, overlap, read_captions
from irdm.data.image_source import ImageSource, printable
from irdm.data.images import Pictures, own_size
from irdm.data.sources import open_source
from irdm.ops.sampling import generator_for
from irdm.text.embedders import embedded

EXAMPLES = 16  # captions of sample grids
PLAN, CAPTIONS = "plan.json", "captions.jsonl"  # of `irdm render`: the second is written last


class Captioned(ImageSource):
    """Some images of several sources as one, in the order of (source, row)."""

    def __init__(self, parts: Sequence[ImageSource], rows: Sequence[tuple[int, int]], conditions: Prompts):
        super().__init__(parts[0].path, [parts[part].names[row] for part, row in rows], None, ())
        self._parts, self._rows, self.conditions = parts, rows, conditions

    def read(self, row: int):
        part, at = self._rows[row]
        return self._parts[part].read(at)

    def where(self, row: int) -> str:
        part, at = self._rows[row]
        return self._parts[part].where(at)


@dataclass(frozen=True)
class _Side:
    """The rows of one side: (part, row in it), the caption and the source of each."""

    rows: list[tuple[int, int]]
    captions: list[str]
    source: Int64[Tensor, " n"] | None

    def only(self, rows: Int64[Tensor, " k"]) -> _Side:
        chosen = rows.tolist()
        source = None if self.source is None else self.source[rows]
        return _Side([self.rows[i] for i in chosen], [self.captions[i] for i in chosen], source)

    def conditions(self) -> Prompts:
        """As far as rows are drawn by them: without tau."""
        return Prompts(self.captions, None, self.source, PromptSpec(embedder="none", width=1))


class CaptionedConfig(SplitConfig):
    """Images with captions. A place is a folder of images or of tars, or a tar; `irdm.data.captions` says where its
    captions are looked for: a file of them in it, or a .txt beside each image.
    """

    kind: Literal["captioned"] = "captioned"
    """Name of this kind of dataset."""
    path: tuple[Path, ...] = Field(min_length=1)
    """The places, each a source of its own; split by val_fraction unless `val` is given."""
    captions: tuple[Path, ...] = ()
    """A file of captions for each place: .jsonl, .csv or COCO's .json; unset, they are looked for in the place."""
    val: tuple[Path, ...] = ()
    """Held-out images: a place for each of `path`, in its order."""
    val_captions: tuple[Path, ...] = ()
    """As `captions`, of `val`."""
    shares: tuple[float, ...] = ()
    """Share of each place among the images, of train and of val: as many are left out as that takes. Unset, all."""
    size: int | None = Field(default=None, ge=4, le=4096)
    """Height and width in pixels: the centre square is cropped and resized. None: as they are, if of one size."""
    embedder: str = "siglip2"
    """Text encoder that makes tau, what joint distances see: siglip2, minilm, ngrams, open_clip:MODEL/TAG, a folder."""
    evaluation_prompts: tuple[Path, ...] = free(())
    """Files of prompts that the generator will be judged on: how many are in the pool is said and recorded."""

    @model_validator(mode="after")
    def _fits(self) -> CaptionedConfig:
        wanted = len(self.path)
        for name in ("captions", "val", "val_captions", "shares"):
            if (found := len(getattr(self, name))) not in (0, wanted):
                raise ValueError(f"{name} has {found} entries for {wanted} places; give one for each, or none.")
        if self.val_captions and not self.val:
            raise ValueError("val_captions is given without val; name the held-out images too.")
        if self.shares and (min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError(f"shares are {', '.join(map(str, self.shares))}; expected shares above 0 that sum to 1.")
        return self

    def build(self) -> Dataset:
        """Train and val, their rows shuffled, of images [n, 3, size, size] with captions and tau. No image is decoded.

        Raises ValueError for a place that cannot be read, images and captions that do not match, shares that cannot be
        met, an unfinished render, sizes that differ, or a text encoder that is missing.
        """
        names = [printable(path.stem or str(path)) for path in self.path]
        name = "+".join(dict.fromkeys(names))
        parts, side, notes = self._side(self.path, self.captions, 0)
        if self.val:
            others, held_out, more = self._side(self.val, self.val_captions, len(parts))
            parts, notes = [*parts, *others], [*notes, *more]
            sides = [chosen.only(self._shuffled(chosen, key)) for key, chosen in (("train", side), ("val", held_out))]
        else:
            sides = [side.only(rows) for rows in split_rows(name, side.conditions(), self).values()]
        captions = [caption for chosen in sides for caption in chosen.captions]
        tau, embedder, cut = embedded(captions, self.embedder, partial(print, flush=True))
        if cut:
            notes.append(f"{cut} different captions are longer than {embedder} reads: tau is of their beginning")
        found = {
            str(file): overlap(captions, [text for _, text in read_captions(file)]) for file in self.evaluation_prompts
        }
        notes += [said_of(file, shared) for file, shared in found.items()]
        spec = PromptSpec(
            embedder=embedder, width=tau.shape[1], sources=tuple(names), examples=_examples(sides[0].captions)
        )
        origin = None if side.source is None else torch.cat([c.source for c in sides if c.source is not None])
        source = Captioned(parts, [row for c in sides for row in c.rows], Prompts(captions, tau, origin, spec))
        shape = (3, self.size, self.size) if self.size else (3, *own_size([source]))
        train, val = (
            Pictures(source, rows, shape)
            for rows in torch.arange(len(source)).split([len(chosen.rows) for chosen in sides])
        )
        if self.drop_shared:
            val = val.only(unshared(train, val))
        return Dataset(name, train, val, tuple(notes), found)

    def _side(
        self, places: Sequence[Path], files: Sequence[Path], first: int
    ) -> tuple[list[ImageSource], _Side, list[str]]:
        """The sources of some places, numbered from `first`, the rows that the shares leave, and what was left out."""
        parts, captions, notes = [], [], []
        for number, path in enumerate(places):
            if (path / PLAN).exists() and not (path / CAPTIONS).exists():
                raise ValueError(
                    f"{path} is half rendered: it has no {CAPTIONS} yet. Repeat the `irdm render` that began it; what "
                    "is finished is kept."
                )
            source = open_source(path, classes=False)
            texts, further = captions_of(source, files[number] if files else None)
            if further:
                notes.append(
                    f"{printable(str(path))}: {further} further captions are left out, the first of each image is taken"
                )
            parts.append(source)
            captions.append(texts)
        counts = [len(texts) for texts in captions]
        kept = [torch.arange(count) for count in counts]
        if self.shares:
            kept = self._shared(places, counts)
            left = [
                f"{count - len(rows)} of {count} of {path}"
                for path, count, rows in zip(places, counts, kept, strict=True)
                if len(rows) < count
            ]
            notes += [f"to meet the shares, {', '.join(map(printable, left))} are left out"] if left else []
        chosen = [(part, row) for part, rows in enumerate(kept) for row in rows.tolist()]
        numbers = torch.tensor([part for part, _ in chosen])
        return (
            parts,
            _Side(
                [(first + part, row) for part, row in chosen],
                [captions[part][row] for part, row in chosen],
                numbers if len(places) > 1 else None,
            ),
            notes,
        )

    def _shared(self, places: Sequence[Path], counts: Sequence[int]) -> list[Int64[Tensor, " _"]]:
        """Random rows of each place, as many as the shares allow, in order."""
        most = min(count / share for count, share in zip(counts, self.shares, strict=True))
        quotas = [min(count, round(most * share)) for count, share in zip(counts, self.shares, strict=True)]
        if min(quotas) < (1 if self.val else 2):
            there = ", ".join(
                f"{count / sum(counts):.3g} in {path}" for path, count in zip(places, counts, strict=True)
            )
            raise ValueError(
                f"The shares {', '.join(map(str, self.shares))} cannot be met: only {max(0, int(most))} of the "
                f"{sum(counts)} images would be left, none or one of some place. There are {there}. Add images where "
                "they are few, or change --data.shares."
            )
        order = [
            torch.randperm(count, generator=generator_for("shares", part, self.split_seed))
            for part, count in enumerate(counts)
        ]
        return [rows[:quota].sort().values for rows, quota in zip(order, quotas, strict=True)]

    def _shuffled(self, side: _Side, key: str) -> Int64[Tensor, " k"]:
        kept = self.kept(side.conditions())
        return kept[torch.randperm(len(kept), generator=generator_for("rows", key, self.split_seed))]


def said_of(file: str, found: dict[str, Any]) -> str:
    """How much of an evaluation is in the pool, in a line."""
    return (
        f"contamination: {found['found']} of {found['prompts']} prompts of {printable(file)} are in the pool, "
        f"{found['share']:.1%} of its rows"
    )


def _examples(captions: Sequence[str]) -> tuple[str, ...]:
    """Some different captions, evenly spaced."""
    distinct = list(dict.fromkeys(captions))
    spaced = torch.linspace(0, len(distinct) - 1, min(EXAMPLES, len(distinct)), dtype=torch.float64).round().long()
    return tuple(distinct[i] for i in spaced.tolist())
