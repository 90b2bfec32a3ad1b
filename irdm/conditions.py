"""What a generator is asked to draw: one condition an image, as a table, and the one law by which rows are drawn.

Everything that draws goes through `draw`: conditions for training, held-out rows for the floors, generated and real
rows for evaluation. So real images drawn as the generator draws score what they should.

Letters: n rows, c columns of tau, b bytes of the longest caption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64
from pydantic import Field
from torch import Tensor

from irdm.config import Config
from irdm.ops.rows import OneHot, Rows
from irdm.ops.sampling import generator_for
from irdm.ops.texts import to_bytes, to_texts


class ClassSpec(Config):
    """Classes by name: all that a generator needs to be built, without the data."""

    kind: Literal["classes"] = "classes"
    free_text: ClassVar[bool] = False
    names: tuple[str, ...]

    def restore(self, count: int, state: Mapping[str, Tensor]) -> Classes:
        """The conditions whose `state` this is."""
        return Classes(state["labels"], self.names)

    def each(self, count: int, most: int | None = None) -> Classes:
        """`count` rows of every class in order; of more than `most` classes only so many, evenly spaced."""
        total = len(self.names)
        chosen = torch.linspace(0, total - 1, min(most or total, total), dtype=torch.float64).round().long()
        return Classes(chosen.repeat_interleave(count), self.names)

    def named(self, wanted: Sequence[str], count: int) -> Classes:
        """`count` rows, the wanted classes (names, or numbers where no name is a number) taking turns.

        Raises ValueError for a class that is not there.
        """
        numbers = {str(number): number for number in range(len(self.names))} | {n: i for i, n in enumerate(self.names)}
        if unknown := [name for name in wanted if name not in numbers]:
            shown = ", ".join(self.names[:20]) + (" ..." if len(self.names) > 20 else "")
            raise ValueError(f"There is no class {', '.join(unknown)}; choose from {shown}.")
        turns = torch.tensor([numbers[name] for name in wanted])
        return Classes(turns[torch.arange(count) % len(turns)], self.names)

    @property
    def width(self) -> int:
        """Columns of tau."""
        return len(self.names)

    @property
    def groups(self) -> int:
        """How many strata there are; 0 where all rows are alike."""
        return len(self.names)

    @property
    def says(self) -> str:
        """What images are asked for by, for people."""
        return f"{len(self.names)} classes"


class NoSpec(Config):
    """No condition: there is nothing to ask for but an image."""

    kind: Literal["none"] = "none"
    free_text: ClassVar[bool] = False

    def restore(self, count: int, state: Mapping[str, Tensor]) -> Unconditional:
        """`count` rows."""
        return Unconditional(count)

    def each(self, count: int, most: int | None = None) -> Unconditional:
        """`count` rows."""
        return Unconditional(count)

    def named(self, wanted: Sequence[str], count: int) -> Unconditional:
        """Raises ValueError: there are no names."""
        raise ValueError(f"These images have no classes, so {', '.join(wanted)} cannot be asked for; leave it out.")

    @property
    def width(self) -> int:
        """tau has no columns."""
        return 0

    groups: ClassVar[int] = 0
    says: ClassVar[str] = "no classes"


class PromptSpec(Config):
    """Free text: how it is embedded for the distances, where it came from, and some of it to show."""

    kind: Literal["prompts"] = "prompts"
    free_text: ClassVar[bool] = True
    """Captions are texts, one a row, and not the names of groups."""
    embedder: str
    """What made tau, with its weights and settings."""
    width: int = Field(ge=1)
    """Columns of tau."""
    sources: tuple[str, ...] = ()
    """Names of the places that the captions are from, by number."""
    examples: tuple[str, ...] = Field(default=(), max_length=16)
    """Captions that sample grids show."""

    def restore(self, count: int, state: Mapping[str, Tensor]) -> Prompts:
        """The conditions whose `state` this is."""
        return Prompts(to_texts(state["captions"]), state.get("tau"), state.get("source"), self)

    def each(self, count: int, most: int | None = None) -> Prompts:
        """`count` rows of every example in order; of more than `most` examples only so many, evenly spaced."""
        texts = self.examples or ("",)
        total = len(texts)
        chosen = torch.linspace(0, total - 1, min(most or total, total), dtype=torch.float64).round().long().tolist()
        return Prompts([texts[i] for i in chosen for _ in range(count)], None, None, self)

    def named(self, wanted: Sequence[str], count: int) -> Prompts:
        """`count` rows, the wanted texts taking turns; any text will do."""
        return Prompts([wanted[i % len(wanted)] for i in range(count)], None, None, self)

    @property
    def groups(self) -> int:
        """How many sources there are; 0 where there is one alone."""
        return len(self.sources) if len(self.sources) > 1 else 0

    @property
    def says(self) -> str:
        """Where captions are from, and what made tau."""
        return f"captions of {' and '.join(self.sources) or 'one source'}, tau [{self.width}] by {self.embedder}"


Spec = ClassSpec | NoSpec | PromptSpec
ConditionSpec = Annotated[Spec, Field(discriminator="kind")]


def class_count(spec: Spec, generator: str) -> int:
    """How many classes a generator of this name is asked for, 0 without any. Raises ValueError for captions."""
    if isinstance(spec, PromptSpec):
        raise ValueError(
            f"The generator '{generator}' draws classes, and these images have captions. Take one that reads text: "
            "--generator.kind klein."
        )
    return spec.width


@runtime_checkable
class Conditions(Protocol):
    """n conditions, one a row. A new kind has these and nothing else: no other code asks which kind it is."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Int64[Tensor, " k"], /) -> Conditions:
        """Some rows, in the order of the index."""
        ...

    @property
    def tau(self) -> Rows | None:
        """What distances see: frozen rows [n, c]; None when there is nothing to see."""
        ...

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """What `Generator.forward` is given beside the noise, by keyword; row i of each is condition i."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """Tensors of n rows each that, with the spec, are these conditions again: `spec.restore(n, state)`."""
        ...

    def captions(self) -> list[str]:
        """One short text a row, for people: file names, the report, PickScore."""
        ...

    @property
    def strata(self) -> Int64[Tensor, " n"] | None:
        """The group of each row, which every draw holds in proportion; None draws all rows alike."""
        ...

    @property
    def spec(self) -> Spec:
        """What a generator is built for; part of a run's reference.json."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256 of the rows."""
        ...


class Classes:
    """A class an image: labels int64 [n], from 0, with the names of all classes."""

    def __init__(self, labels: Int64[Tensor, " n"], names: Sequence[str]):
        """Raises ValueError for a label without a name."""
        self.labels, self.names = labels, tuple(names)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.names):
            raise ValueError(
                f"Labels run from {int(labels.min())} to {int(labels.max())}, but there are {len(self.names)} class "
                "names; expected 0 to one less than that."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Int64[Tensor, " k"], /) -> Classes:
        return Classes(self.labels[rows], self.names)

    @property
    def tau(self) -> OneHot:
        """One-hot rows [n, classes]."""
        return OneHot(self.labels, len(self.names))

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """{"labels": [n]}."""
        return {"labels": self.labels.to(device)}

    @property
    def state(self) -> dict[str, Tensor]:
        """{"labels": [n]}."""
        return {"labels": self.labels}

    def captions(self) -> list[str]:
        """The name of each row's class."""
        return [self.names[label] for label in self.labels.tolist()]

    @property
    def strata(self) -> Int64[Tensor, " n"]:
        """The classes."""
        return self.labels

    @property
    def spec(self) -> ClassSpec:
        """The names."""
        return ClassSpec(names=self.names)

    @property
    def fingerprint(self) -> str:
        """Of the names and the labels."""
        names = "\0".join(self.names).encode("utf-8", "surrogateescape")
        return hashlib.sha256(names + self.labels.cpu().numpy().tobytes()).hexdigest()


class Unconditional:
    """n rows without a condition."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: slice | Int64[Tensor, " k"], /) -> Unconditional:
        return Unconditional(len(range(self._count)[rows]) if isinstance(rows, slice) else len(rows))

    @property
    def tau(self) -> None:
        """Nothing to see: joint matching is marginal matching."""
        return None

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Nothing."""
        return {}

    @property
    def state(self) -> dict[str, Tensor]:
        """Nothing but the number of rows."""
        return {}

    def captions(self) -> list[str]:
        """Empty texts."""
        return [""] * self._count

    @property
    def strata(self) -> None:
        """All rows alike."""
        return None

    @property
    def spec(self) -> NoSpec:
        """No condition."""
        return NoSpec()

    @property
    def fingerprint(self) -> str:
        """Of their number."""
        return hashlib.sha256(str(self._count).encode()).hexdigest()


class Prompts:
    """A caption an image, with its text embedding tau float32 [n, c] and the number of its source int64 [n].

    tau is not needed to draw images, nor the source where there is one alone.
    """

    def __init__(
        self,
        captions: Sequence[str],
        tau: Float32[Tensor, "n c"] | None,
        source: Int64[Tensor, " n"] | None,
        spec: PromptSpec,
    ):
        """Raises ValueError when tau or the sources are not a row a caption, or tau is not as wide as the spec says."""
        self._captions, self.tau, self.strata, self._spec = [*captions], tau, source, spec
        n, shape = len(self._captions), None if tau is None else tuple(tau.shape)
        if shape not in (None, (n, spec.width)) or (source is not None and len(source) != n):
            raise ValueError(
                f"Got {n} captions with tau {shape} and {None if source is None else len(source)} sources; expected "
                f"tau {(n, spec.width)} and a source each, or none."
            )

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, rows: slice | Int64[Tensor, " k"], /) -> Prompts:
        chosen = self._captions[rows] if isinstance(rows, slice) else [self._captions[i] for i in rows.tolist()]
        tau, source = (None if part is None else part[rows] for part in (self.tau, self.strata))
        return Prompts(chosen, tau, source, self._spec)

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """{"captions": uint8 [n, b]}, as `to_bytes` makes them."""
        return {"captions": to_bytes(self._captions).to(device)}

    @property
    def state(self) -> dict[str, Tensor]:
        """{"captions": uint8 [n, b], "tau": [n, c], "source": [n]}, those of the last two that are known."""
        known = {"tau": self.tau, "source": self.strata}
        return {"captions": to_bytes(self._captions)} | {k: part for k, part in known.items() if part is not None}

    def captions(self) -> list[str]:
        """The captions."""
        return [*self._captions]

    @property
    def spec(self) -> PromptSpec:
        """Of the whole data set, whichever rows these are."""
        return self._spec

    @property
    def fingerprint(self) -> str:
        """Of the captions, the sources and the embedder, which decide tau up to rounding."""
        digest = hashlib.sha256("\0".join([self._spec.embedder, *self._captions]).encode())
        digest.update(b"" if self.strata is None else self.strata.cpu().numpy().tobytes())
        return digest.hexdigest()


def draw(conditions: Conditions, count: int, *keys: int | str) -> Int64[Tensor, " count"]:
    """Row numbers of a draw of `count`, decided by the keys, as a rule (seed, step).

    Every stratum is held in proportion: one with a share p gets floor(p count) rows or one more, at random with the
    right expectation, and its rows are random. Rows are distinct as long as there are enough; beyond that each comes
    equally often, or once more. A table that is larger than `count` is a fresh random part of it at every step.
    """
    return draws(conditions, count, 1, *keys)[0]


def draws(conditions: Conditions, count: int, times: int, *keys: int | str) -> Int64[Tensor, "times count"]:
    """Several draws of the same law that share no row; needs times * count <= n rows to be distinct."""
    n, total = len(conditions), times * count
    if not n or count < 1 or times < 1:
        raise ValueError(f"Asked for {times} draw(s) of {count} from {n} rows; expected at least 1 of each.")
    generator = generator_for("draw", *keys)
    order = torch.randperm(n, generator=generator)
    if conditions.strata is not None:
        order = order[conditions.strata.cpu()[order].sort(stable=True).indices]
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    comb = order[((torch.arange(total) + start) * n / total).long().clamp(max=n - 1)]
    dealt = comb.reshape(count, times).T  # neighbours of a stratum go to different draws
    return torch.stack([row[torch.randperm(count, generator=generator)] for row in dealt])


def proportioned(conditions: Conditions, like: Conditions) -> Int64[Tensor, " k"]:
    """The most rows of `conditions`, in order, whose strata have the proportions of `like`, to the rounding of a split.

    Held-out images that come from another place than the training images may have other class frequencies than the
    generator is asked to draw. Raises ValueError when one has strata that the other has not.
    """
    if (conditions.strata is None) != (like.strata is None):
        raise ValueError("Training and held-out images must both have classes, or neither.")
    if conditions.strata is None or like.strata is None:
        return torch.arange(len(conditions))
    strata, wanted = conditions.strata.cpu(), like.strata.cpu()
    size = int(max(strata.max(), wanted.max())) + 1
    there, share = torch.bincount(strata, minlength=size), torch.bincount(wanted, minlength=size) / len(wanted)
    if ((there - share * len(strata)).abs() <= 1).all():  # as close as whole rows can be
        return torch.arange(len(conditions))
    asked = share > 0
    most = int(((there[asked] + 0.5) / share[asked]).min())
    quota = torch.minimum((share * most).round().long(), there)
    return torch.cat([(strata == s).nonzero()[: int(q), 0] for s, q in enumerate(quota)]).sort().values
