"""Charts as plain SVG. Positions are percentages, so a chart fits any width while its text keeps its size; colours
are classes of the page's style sheet, so one drawing serves light and dark. Every chart has a text alternative.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

BINS = 240  # points a line is drawn with, however many steps were logged
TINY = 1e-100  # nearer to 0 than this is 0: quotients of what is left stay finite


@dataclass(frozen=True)
class Axis:
    """Maps values to 0..100 percent."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(
        cls, values: Iterable[float | None], *, log: bool = False, zero: bool = False, pad: float = 0.06
    ) -> Axis:
        """An axis that holds all finite values (on a log axis all positive ones) with a little room at both ends."""
        found = [0.0 if abs(v) < TINY else v for v in values if v is not None and math.isfinite(v)]
        kept = [v for v in found if v > 0 or not log]
        low, high = (min(kept), max(kept)) if kept else (1.0, 1.0)
        if log:
            room = max((high / low) ** pad, 1.05)
            return cls(low / room, high * room, True)
        low = min(low, 0.0) if zero else low
        room = (high - low) * pad or abs(high) * 0.1 or 1.0
        return cls(low if zero and low == 0 else low - room, high + room)

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * share, 2)

    def ticks(self, about: int = 5) -> list[float]:
        if self.log and self.high / self.low > 3:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            factors = (1, 2, 3, 5) if last - first <= about / 2 else (1,)
            every = max(1, round((last - first) / about))
            marks = [f * 10.0**k for k in range(first, last + 1, every) for f in factors]
        else:
            rough = (self.high - self.low) / about
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
            marks = [step * k for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [m for m in marks if self.low <= m <= self.high]


@dataclass(frozen=True)
class Mark:
    """One row of a ruler: a value, its 95% interval, and what fresh real images score; `kind` is a colour class."""

    name: str
    value: float
    kind: str
    ci95: Sequence[float] | None = None
    control: float | None = None


@dataclass(frozen=True)
class Step:
    """A row of the ladder: a defect, and of each level its name, how far from real it is, and the defect in words."""

    name: str
    levels: Sequence[tuple[str, float, str]]


@dataclass(frozen=True)
class Series:
    """A line over steps: (step, value) points; a missing or non-finite value leaves a gap."""

    name: str
    points: Sequence[tuple[int, float | None]]
    kind: str = "all"


def number(value: float | None) -> str:
    """A short human number: 1.03, 12,000, 4.1e-05."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"  # of either sign
    if 1e-4 <= abs(value) < 1e-2:
        return f"{value:.2g}"
    if abs(value) < 1e-4 or abs(value) >= 1e7:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"


def score(value: float | None) -> str:
    """A score: two decimals where they say enough, so that a column of scores lines up."""
    return f"{value:.2f}" if value is not None and 0.095 <= abs(value) < 1000 else number(value)


def interval(ci95: Sequence[float] | None) -> str:
    """Both ends of an interval; nothing where there is none."""
    return " – ".join(map(score, ci95 or ()))


def _svg(body: Iterable[str], height: int, alt: str, kind: str) -> Markup:
    return Markup(
        f'<div class="plot {kind}"><svg role="img" aria-label="{escape(alt)}" width="100%" height="{height}">'
        f"{''.join(body)}</svg></div>"
    )


def ruler(marks: Sequence[Mark], title: str, *, control: float | None, row: int = 40) -> Markup:
    """A row a score with its 95% interval and a tick at its own control, and a line down from the control of all.

    The axis is logarithmic where every number is positive.
    """
    values = [v for m in marks for v in (m.value, m.control, *(m.ci95 or ())) if v is not None]
    values += [] if control is None else [control]
    axis = Axis.around(values, log=min(values) > TINY, pad=0.1)
    top = 66
    height = top + row * len(marks) + 4
    real = None if control is None else axis.at(control)
    body = [f'<line class="edge" x1="0" x2="100%" y1="{top - 18}" y2="{top - 18}"/>']
    for i, tick in enumerate(axis.ticks(8)):
        x = axis.at(tick)
        body.append(f'<line class="edge" x1="{x}%" x2="{x}%" y1="{top - 18}" y2="{top - 11}"/>')
        kind = "tick minor" if i % 2 else "tick"
        body.append(f'<text class="{kind}" x="{x}%" y="{top - 25}" text-anchor="middle">{number(tick)}</text>')
    if real is not None:
        anchor = "start" if real < 12 else "end" if real > 88 else "middle"
        said = f"real control {score(control)}"
        body.append(f'<line class="one" x1="{real}%" x2="{real}%" y1="{top - 42}" y2="{height}"/>')
        body.append(f'<text class="onelabel" x="{real}%" y="{top - 50}" text-anchor="{anchor}">{said}</text>')
    for i, mark in enumerate(marks):
        x, y = axis.at(mark.value), top + row * i + row / 2
        body.append(f'<text class="name" x="0" dx="-14" y="{y + 4}" text-anchor="end">{_short(mark.name)}</text>')
        body.append(f'<line class="rail" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        if mark.ci95:
            low, high = map(axis.at, mark.ci95)
            body.append(f'<line class="ci {mark.kind}" x1="{low}%" x2="{high}%" y1="{y}" y2="{y}"/>')
        if mark.control is not None:
            own = axis.at(mark.control)
            body.append(f'<line class="own" x1="{own}%" x2="{own}%" y1="{y - 8}" y2="{y + 8}"/>')
        hover = f"<title>{escape(_spoken(mark))}</title>"
        if mark.kind == "out":  # another shape as well as another colour
            shape = f'<path class="dot out" d="M0-8 8 0 0 8-8 0Z">{hover}</path>'
            body.append(f'<svg x="{x}%" y="{y}" overflow="visible">{shape}</svg>')
        else:
            body.append(f'<circle class="dot {mark.kind}" cx="{x}%" cy="{y}" r="6.5">{hover}</circle>')
        body.append(f'<text class="value" x="100%" dx="14" y="{y + 5}">{score(mark.value)}</text>')
    scale = "logarithmic" if axis.log else "linear"
    return _svg(body, height, f"{title} on a {scale} axis. {'; '.join(map(_spoken, marks))}.", "ruler")


def ladder(rows: Sequence[Step], here: float | None, title: str, *, row: int = 26) -> Markup:
    """A row a defect with a dot a level, on a log axis; a line at 1, where fresh real images are, and one at these."""
    values = [value for one in rows for _, value, _ in one.levels]
    axis = Axis.around([1.0, *values, here], log=True, pad=0.06)
    top = 52
    height = top + row * len(rows) + 4
    body = [f'<line class="edge" x1="0" x2="100%" y1="{top - 12}" y2="{top - 12}"/>']
    for i, tick in enumerate(axis.ticks(7)):
        x = axis.at(tick)
        kind = "tick minor" if i % 2 else "tick"
        body.append(f'<line class="edge" x1="{x}%" x2="{x}%" y1="{top - 12}" y2="{top - 6}"/>')
        body.append(f'<text class="{kind}" x="{x}%" y="{top - 18}" text-anchor="middle">{number(tick)}</text>')
    real = axis.at(1.0)
    body.append(f'<line class="one" x1="{real}%" x2="{real}%" y1="{top - 12}" y2="{height}"/>')
    if here is not None:
        x = axis.at(here)
        anchor = "start" if x < 12 else "end" if x > 88 else "middle"
        body.append(f'<line class="here" x1="{x}%" x2="{x}%" y1="{top - 30}" y2="{height}"/>')
        body.append(f'<text class="herelabel" x="{x}%" y="{top - 36}" text-anchor="{anchor}">these images</text>')
    for i, one in enumerate(rows):
        y, last = top + row * i + row / 2, -10.0
        body.append(f'<text class="name" x="0" dx="-14" y="{y + 4}" text-anchor="end">{_short(one.name)}</text>')
        body.append(f'<line class="rail" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        for label, value, said in one.levels:
            x = axis.at(value)
            hover = f"<title>{escape(said)}: {score(value)}</title>"
            body.append(f'<circle class="rung" cx="{x}%" cy="{y}" r="4">{hover}</circle>')
            if x - last > 4:
                body.append(f'<text class="level-name minor" x="{x}%" dx="6" y="{y - 3}">{escape(label)}</text>')
                last = x
    spoken = "; ".join(f"{said} {score(value)}" for one in rows for _, value, said in one.levels)
    lies = f"These images {score(here)}. " if here is not None else ""
    return _svg(body, height, f"{title}, on a logarithmic axis. {lies}{spoken}.", "ruler")


def _spoken(mark: Mark) -> str:
    held = " (held out)" if mark.kind == "out" and mark.name != "Held out" else ""
    span = f", 95% interval {score(mark.ci95[0])} to {score(mark.ci95[1])}" if mark.ci95 else ""
    real = f", real control {score(mark.control)}" if mark.control is not None else ""
    return f"{mark.name}{held} {score(mark.value)}{span}{real}"


def _short(name: str) -> str:
    return escape(name if len(name) <= 16 else name[:15] + "…")


def _binned(points: Sequence[tuple[int, float | None]]) -> list[list[tuple[float, float, float, float]]]:
    """Runs of (step, mean, low, high), at most BINS in all; a bin without a finite value ends a run."""
    size = max(1, -(-len(points) // BINS))
    runs: list[list[tuple[float, float, float, float]]] = [[]]
    for start in range(0, len(points), size):
        kept = [(s, v) for s, v in points[start : start + size] if v is not None and math.isfinite(v)]
        if kept:
            values = [v for _, v in kept]
            steps = [s for s, _ in kept]
            runs[-1].append((sum(steps) / len(steps), sum(values) / len(values), min(values), max(values)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def lines(
    series: Sequence[Series],
    alt: str,
    *,
    y: Axis | None = None,
    log: bool = False,
    zero: bool = False,
    level: float | None = None,
    flags: Sequence[int] = (),
    height: int = 170,
    ticks: int = 5,
) -> Markup:
    """Values over steps: a line a series, a faint band where a drawn point stands for several steps, a dashed `level`,
    and a red triangle at every step in `flags`."""
    runs = [(s.kind, run) for s in series for run in _binned(s.points)]
    every = [v for _, run in runs for point in run for v in point[1:]]
    if not every:
        return Markup('<p class="empty">No finite value was logged.</p>')
    y = y or Axis.around([*every, level], log=log, zero=zero)
    steps = [s for one in series for s, _ in one.points]
    x = Axis(min(0, *steps), max(1, *steps))
    body = []
    for tick in y.ticks(4):
        at = round(100 - y.at(tick), 2)
        body.append(f'<line class="grid" x1="0" x2="100%" y1="{at}%" y2="{at}%"/>')
        body.append(f'<text class="tick" x="0" dx="-8" y="{at}%" dy="4" text-anchor="end">{number(tick)}</text>')
    for tick in x.ticks(ticks):
        text = f'<text class="tick" x="{x.at(tick)}%" y="100%" dy="18" text-anchor="middle">{number(tick)}</text>'
        body.append(text)
    body.append('<line class="edge" x1="0" x2="100%" y1="100%" y2="100%"/>')
    if level is not None and (level > 0 or not y.log):
        at = round(100 - y.at(level), 2)
        body.append(f'<line class="level" x1="0" x2="100%" y1="{at}%" y2="{at}%"/>')
    body.append('<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none" overflow="visible">')
    for kind, run in runs:
        spots = [(x.at(s), 100 - y.at(m), 100 - y.at(lo), 100 - y.at(hi)) for s, m, lo, hi in run]
        if any(lo != hi for _, _, lo, hi in run):
            outline = [(a, h) for a, _, _, h in spots] + [(a, lo) for a, _, lo, _ in reversed(spots)]
            body.append(f'<path class="band {kind}" d="M{"L".join(f"{a:g},{b:.2f}" for a, b in outline)}Z"/>')
        path = "L".join(f"{a:g},{b:.2f}" for a, b, _, _ in spots)
        body.append(f'<path class="line {kind}" d="M{path}{"h0" if len(spots) == 1 else ""}"/>')
    body.append("</svg>")
    if len(steps) <= 40 * len(series):
        body += [
            f'<circle class="point {kind}" cx="{x.at(s)}%" cy="{round(100 - y.at(m), 2)}%" r="2.5"/>'
            for kind, run in runs
            for s, m, _, _ in run
        ]
    body += [f'<text class="flag" x="{x.at(s)}%" y="0" dy="2" text-anchor="middle">▼</text>' for s in flags]
    return _svg(body, height, alt, "lines")


def strips(series: Sequence[Series], alt: str, *, columns: int = 80) -> Markup:
    """One strip an encoder over steps: the stronger the colour, the larger the value, on one scale."""
    steps = [s for one in series for s, _ in one.points]
    x = Axis(min(0, *steps), max(1, *steps))
    top = max([v for one in series for _, v in one.points if v is not None and math.isfinite(v)] or [0]) or 1.0
    row, thick = 26, 18
    height = row * len(series)
    body = []
    for i, one in enumerate(series):
        y = row * i + (row - thick) / 2
        name = f'<text class="name" x="0" dx="-12" y="{y + 13}" text-anchor="end">{_short(one.name)}</text>'
        body += [name, f'<rect class="track" x="0" y="{y}" width="100%" height="{thick}" rx="3"/>']
        size = max(1, -(-len(one.points) // columns))
        starts = range(0, len(one.points), size)
        edges = [x.at(one.points[s][0]) for s in starts] + [100.0]
        for start, left, right in zip(starts, edges[:-1], edges[1:], strict=True):
            kept = [v for _, v in one.points[start : start + size] if v is not None and math.isfinite(v)]
            mean = sum(kept) / len(kept) if kept else 0.0
            if mean > 0:
                body.append(
                    f'<rect class="cell" x="{left}%" y="{y}" width="{round(right - left, 2)}%" height="{thick}" '
                    f'fill-opacity="{max(mean / top, 0.04):.2f}"><title>{number(mean)}</title></rect>'
                )
        last = one.points[-1][1] if one.points else None
        body.append(f'<text class="value" x="100%" dx="12" y="{y + 14}">{number(last)}</text>')
    for tick in x.ticks(5):
        at = f'x="{x.at(tick)}%" y="{height}" dy="14" text-anchor="middle"'
        body.append(f'<text class="tick" {at}>{number(tick)}</text>')
    return _svg(body, height + 18, alt, "strips")
