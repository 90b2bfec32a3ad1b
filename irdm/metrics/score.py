"""What every metric returns: a score with its interval, its replicates, and what fresh real images score.

The contract of replicates: K numbers whose mean is the value and whose standard deviation over sqrt(K) is its standard
error. Replicate k stands for the same rows under every encoder and, in two results of one protocol, for the same noise;
so differences of replicates give the interval of a difference (`irdm.compare`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import field_validator

from irdm.config import Config

Interval = tuple[float, float]
Direction = Literal["lower", "higher", "real"]
"""What is good: a lower value, a higher one, or the value of fresh real images (both sides of it are worse)."""


class Estimate(Config):
    """One number and how sure it is."""

    value: float
    ci95: Interval | None = None
    """95% interval."""
    control: float | None = None
    """What fresh real images score in the place of the judged ones."""
    control_error: float | None = None
    """Standard error of the control. None where it is not known."""
    p_real: float | None = None
    """Probability that fresh real images in their place score at least as far on the bad side: below, or above, or, for
    a score whose best value is that of real images, on either side. None where it is not known."""
    replicates: tuple[float, ...] = ()
    """See the contract above."""
    notes: dict[str, Any] = {}
    """What else is worth saying of this number, such as the dimensions of a covariance."""

    @field_validator("value", "control", "ci95")
    @classmethod
    def _zero_has_no_sign(cls, number: Any) -> Any:
        if isinstance(number, tuple):
            return tuple(end + 0.0 for end in number)
        return None if number is None else number + 0.0


class Score(Config):
    """A metric of one set of images: over all encoders, by group, and by encoder.

    `mean`, `held_in` and `held_out` are None where the group is empty or has no common scale; a metric that needs no
    encoder has `mean` alone.
    """

    label: str
    """What people call it: SW_r14, FID, precision."""
    direction: Direction
    says: str
    """One sentence for the report: what the number is, and what is good."""
    mean: Estimate | None = None
    held_in: Estimate | None = None
    """Encoders that may have trained the generator."""
    held_out: Estimate | None = None
    """Encoders that did not."""
    encoders: dict[str, Estimate] = {}
    notes: dict[str, Any] = {}
    """Settings that two results must share to be compared, such as numbers of rows."""


def grouped(encoders: Sequence[str], held_out: Sequence[str]) -> Mapping[str, list[str]]:
    """{"mean": all, "held_in": those that may train, "held_out": the rest}, in order; empty groups are left out."""
    groups = {
        "mean": list(encoders),
        "held_in": [name for name in encoders if name not in held_out],
        "held_out": [name for name in encoders if name in held_out],
    }
    return {group: names for group, names in groups.items() if names}
