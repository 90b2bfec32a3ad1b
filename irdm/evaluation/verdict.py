"""The verdict: one sentence about a set of images, and the witnesses behind it.

Images are as close as real ones only when no witness objects. Otherwise the sentence says what is wrong, in words, and
which defect is as far from real (`irdm.evaluation.sensitivity`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from irdm.config import Config
from irdm.evaluation.gaming import gamed
from irdm.evaluation.placing import Place, place
from irdm.evaluation.sensitivity import DISTANCE, Sensitivity, excess
from irdm.evaluation.witnesses import Said, Witness, witnesses
from irdm.metrics.score import Estimate, Score

HEADLINE = "sw_ratio"
"""The score that is put first; the published one."""


class Verdict(Config):
    """What a result says first."""

    sentence: str
    witnesses: tuple[Witness, ...] = ()
    group: str = "mean"
    """Of the headline: held_out, where there are such encoders."""
    gamed: str | None = None
    """What the held-out encoders see that those that trained do not."""
    place: Place | None = None
    """Where the images lie on the ladder of defects; None where no distance objects, or there is no ladder."""
    ratio: float | None = None
    """The mean ratio over the encoders of the group, as it would be for as many images as the ladder has."""
    blind: tuple[str, ...] = ()
    """Defects that nothing here sees, though they should be."""

    @property
    def real(self) -> bool:
        """Whether some witness knows, and none objects."""
        known = [one for one in self.witnesses if one.p is not None]
        return bool(known) and not any(one.objects for one in known) and self.gamed is None


def headline(scores: Mapping[str, Score]) -> tuple[str, Score, Estimate] | None:
    """(group, score, estimate) of the number that is put first: of held-out encoders, where there are such.

    None where no score has a mean over encoders.
    """
    ordered = [scores[HEADLINE]] if HEADLINE in scores else list(scores.values())
    for score in ordered:
        for group in ("held_out", "mean", "held_in"):
            if (found := getattr(score, group)) is not None:
                return group, score, found
    return None


def verdict_of(
    scores: Mapping[str, Score],
    ladder: Sensitivity | None = None,
    *,
    trained: bool = False,
    held_out: Collection[str] = (),
) -> Verdict:
    """What is to be said of a set of images.

    Args:
        scores: of `judge`.
        ladder: of the real side that they were judged against.
        trained: whether a generator was trained by the held-in encoders, so that it could game them.
        held_out: encoders that are asked first.
    """
    heard, first = witnesses(scores, held_out), headline(scores)
    distance = next(one for one in heard if one.name == "distance")
    gaming = _gamed(scores.get(HEADLINE)) if trained else None
    there, ratio = None, None
    group = first[0] if first else "mean"
    if ladder is not None and DISTANCE in scores:
        judged = excess(scores[DISTANCE])
        ratio = ladder.mean(judged, group)
        if distance.objects:
            visible = any(one.objects for one in heard if one.name == "fidelity")
            there = place(ladder, judged, distance.evidence[0].encoder, visible=visible)
    return Verdict(
        sentence=_sentence(heard, there, gaming),
        witnesses=heard,
        group=group,
        gamed=gaming,
        place=there,
        ratio=ratio,
        blind=ladder.blind() if ladder is not None else (),
    )


def _gamed(score: Score | None) -> str | None:
    if score is None or score.held_in is None or score.held_out is None:
        return None
    sides = [part.value / (part.control or 1) for part in (score.held_in, score.held_out)]
    if not gamed(*sides):
        return None
    numbers = f"{Said(score.held_in.value)} held in and {Said(score.held_out.value)} held out"
    return f"the encoders that trained are being gamed: {score.label} is {numbers}"


def _sentence(heard: tuple[Witness, ...], there: Place | None, gaming: str | None) -> str:
    """What is wrong, the most telling first; or that nothing is."""
    known = {one.name: one for one in heard if one.p is not None}
    if not known:
        return "Not known: no score here says how real images vary."
    objecting = {one.name for one in known.values() if one.objects}
    wrong = [
        _far(one, there) if one.name == "distance" else _wrong(one, objecting) for one in known.values() if one.objects
    ]
    wrong += [gaming] if gaming else []
    if not wrong:
        silent = [one.name for one in heard if one.p is None]
        asked = f" ({', '.join(silent)}: not known)" if silent else ""
        return f"As close as real images: no witness objects{asked}."
    near = "distance" in known and "distance" not in objecting
    return f"{'Close by distance, but' if near else 'Not real:'} {'; '.join(wrong)}."


def _far(one: Witness, there: Place | None) -> str:
    found = one.evidence[0]
    how = "far from real"
    if there is not None:
        how = f"{'further from real than' if there.beyond else 'as far from real as'} {there.says}"
    return f"{how} ({found.encoder}: {found.says})" if found.encoder else f"{how} ({found.says})"


def _wrong(one: Witness, objecting: set[str]) -> str:
    found = one.evidence[0]
    said = f"{found.says} ({found.encoder})" if found.encoder else found.says
    # images that are defective reach few real ones, whatever kinds there are
    return said if one.name == "coverage" and "fidelity" in objecting else f"{said}: {found.means}"
