"""Four witnesses, each of which may object to images being called real: distance, fidelity, coverage, memorisation.

A witness asks some scores one question: could fresh real images in the place of the judged ones score as badly? The
p-values are corrected for the number of encoders, of scores and of witnesses that were asked (Holm, 1979), so that some
witness objects to at most ALPHA of all sets of real images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from irdm.config import Config
from irdm.metrics.intervals import holm, worst
from irdm.metrics.score import Estimate, Score

ALPHA = 0.05
"""Share of sets of real images to which some witness objects."""

SURE = 0.001
"""An encoder that trained nothing speaks where its chance is at most this, whichever other is more alarming."""

SHARES = {"distance": 1 / 2, "fidelity": 1 / 6, "coverage": 1 / 6, "memorisation": 1 / 6}
"""Of ALPHA that each witness may spend: half for the distance, which asks every encoder about everything."""

Side = Literal["low", "high", "both"]


class Question(NamedTuple):
    """What is asked of a score: on which side of its control it is bad, how it is said, and what each side means."""

    side: Side
    says: str
    low: str = ""
    high: str = ""
    pooled: bool = False
    """Whether the mean over encoders is asked, in place of the most alarming one."""


FAR, DEFECTS = "far from real", "visible defects"
MISSING, COPIED = "kinds of images are missing", "train images are repeated"
UNLIKE = "kinds of images are missing, or too rare"
NEAR = "as copies are, and smooth images"
SMOOTH = "more typical than real images, as smooth ones are"
WITNESSES: Mapping[str, Mapping[str, Question]] = {
    "distance": {
        "whitened_ratio": Question("high", "{label} {value} where real is {control}", high=FAR),
    },
    "fidelity": {
        "precision": Question("low", "{value:%} precise where real is {control:%}", low=DEFECTS),
        "density": Question("both", "density {value} where real is {control}", low=DEFECTS, high=SMOOTH),
        "nearest_neighbour_ratio": Question("high", "{value} times as far from train, real {control}", high=DEFECTS),
    },
    "coverage": {
        "recall": Question("low", "{value:%} of real images reached where fresh ones reach {control:%}", low=MISSING),
        "coverage": Question("low", "{value:%} of real images covered where fresh ones cover {control:%}", low=MISSING),
        "bins": Question("high", "chi-square of kinds {value} where real has {control}", high=UNLIKE, pooled=True),
        "class_shares": Question("high", "class {class} is {share} times as frequent", high=UNLIKE, pooled=True),
        "duplicates": Question("high", "{value:%} repeat another where of real images {control:%} do", high="repeats"),
    },
    "memorisation": {
        "near_copies": Question("high", "{value:%} near copies of train where real has {control:%}", high=COPIED),
        "closeness": Question("high", "closer to train than real {value:%} of the time, real {control:%}", high=NEAR),
        "authenticity": Question("low", "{value:%} authentic where real is {control:%}", low=NEAR),
    },
}  # fmt: skip
"""What each witness asks, by the name of the score. A score that is not there is not asked."""


class Evidence(Config):
    """What one score says."""

    score: str
    """Its name among the scores of the result."""
    label: str
    encoder: str | None = None
    """The most alarming one; None for a score without encoders."""
    value: float
    control: float | None = None
    p: float | None = None
    """Probability that fresh real images look as bad, corrected for the number of encoders."""
    says: str
    """The number beside its control, in words."""
    means: str
    """What is wrong with images that are on this side of the control; empty on the good side."""


class Witness(Config):
    """The answer of one witness."""

    name: str
    p: float | None = None
    """Probability that fresh real images look as bad to it, corrected for all that was asked; None: not known."""
    evidence: tuple[Evidence, ...] = ()
    """The most telling first."""

    @property
    def objects(self) -> bool:
        """Whether these are not real images, as far as this one sees."""
        return self.p is not None and self.p <= ALPHA


def witnesses(scores: Mapping[str, Score], held_out: Collection[str] = ()) -> tuple[Witness, ...]:
    """All four, in the order of WITNESSES. Encoders held out are asked first."""
    heard: dict[str, tuple[Evidence, ...]] = {}
    chances: dict[str, float] = {}
    for name, asked in WITNESSES.items():
        found = [
            _evidence(score, scores[score], question, held_out) for score, question in asked.items() if score in scores
        ]
        heard[name] = tuple(sorted(found, key=lambda one: 2.0 if one.p is None else one.p))
        if known := {one.score: one.p for one in found if one.p is not None}:
            chances[name] = min(holm(known).values())
    corrected = holm(chances, {name: SHARES[name] for name in chances})
    return tuple(Witness(name=name, p=corrected.get(name), evidence=found) for name, found in heard.items())


def _evidence(name: str, score: Score, question: Question, held_out: Collection[str]) -> Evidence:
    """What speaks for a score: of the encoders held out the most alarming one, if it is sure, else of all.

    The mean where that is asked, or no encoder says how sure it is.
    """
    one_sided = {e: _one_sided(part, score, question.side) for e, part in score.encoders.items()}
    found = None if question.pooled else worst(score.model_copy(update={"encoders": one_sided}), held_out, SURE)
    if found is not None:
        encoder, p = found
        part = score.encoders[encoder]
    else:
        part = score.mean or score.held_out or score.held_in or next(iter(score.encoders.values()))
        encoder, p = None, _one_sided(part, score, question.side).p_real
    side = None if part.control is None else "high" if part.value > part.control else "low"
    bad = side is not None and question.side in (side, "both")
    numbers = {"label": score.label, "value": Said(part.value), "control": Said(part.control)}
    numbers |= {key: Said(note) if isinstance(note, float | None) else note for key, note in part.notes.items()}
    return Evidence(
        score=name,
        label=score.label,
        encoder=encoder,
        value=part.value,
        control=part.control,
        p=p,
        says=question.says.format(**numbers),
        means=getattr(question, side) if bad and side else "",
    )


def _one_sided(part: Estimate, score: Score, side: Side) -> Estimate:
    """The same number with the p-value of the side that is asked about, where the score's own is of both."""
    if part.p_real is None or part.control is None or score.direction != "real" or side == "both":
        return part
    bad = part.value > part.control if side == "high" else part.value < part.control
    return part.model_copy(update={"p_real": part.p_real / 2 if bad else 1 - part.p_real / 2})


class Said:
    """A number in a sentence: plain, or with `:%` a share."""

    def __init__(self, value: float | None):
        self.value = value

    def __format__(self, form: str) -> str:
        if self.value is None:
            return "not known"
        if form == "%":
            share = 100 * self.value + 0.0
            return f"{share:.0f}%" if 10 <= share <= 99 or share == 100 else f"{share:.1f}%"
        return f"{self.value:.2f}" if abs(self.value) < 100 else f"{self.value:.0f}"
