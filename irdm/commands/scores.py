"""The tables that commands print: of the scores of one evaluation, and of the differences of two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from irdm.evaluation import Result, Verdict
    from irdm.metrics.score import Estimate

COLUMNS = ("held out", "held in", "all", "95% interval", "real")


def score_table(result: Result) -> str:
    """The verdict; a row a score, whatever scores there are, by encoder where they have no common scale; the warnings.

    Interval and control are those of the first number of a row.
    """
    rows: list[tuple[str, ...]] = [("", *COLUMNS)]
    for score in result.scores.values():
        groups = (score.held_out, score.held_in, score.mean)
        if first := next((group for group in (score.held_out, score.mean, score.held_in) if group), None):
            rows.append((score.label, *map(_value, groups), _interval(first), _number(first.control)))
        else:
            rows += [(score.label, *("" for _ in COLUMNS))] if score.encoders else []
            rows += [
                (f"  {found.notes.get('name', name)}", _value(found), "", "", _interval(found), _number(found.control))
                for name, found in score.encoders.items()
            ]
    notes = (f"\nnote: {warning}" for warning in result.warnings)
    return "\n".join([*(verdict_lines(result.verdict) if result.verdict else []), *_aligned(rows), *notes])


def verdict_lines(verdict: Verdict) -> list[str]:
    """The sentence, a line a witness, and what nobody would have seen."""
    rows = [("", "", "chance", "")]
    for one in verdict.witnesses:
        word = "not known" if one.p is None else "objects" if one.objects else "passes"
        said = "; ".join(found.says for found in one.evidence[:2])
        rows.append((one.name, word, _chance(one.p), said))
    lines = [verdict.sentence, "", *_aligned(rows, left=(0, 1, 3)), ""]
    if verdict.blind:
        lines += [f"Nothing here would have seen {', '.join(verdict.blind)}.", ""]
    return lines


def comparison_table(found: Mapping[str, Any]) -> str:
    """A row a score and group, or encoder where they have no common scale: A, B, B - A, interval, p, the better one."""
    rows: list[tuple[str, ...]] = [("", "A", "B", "B - A", "95% interval", "p", "corrected", "")]
    for metric in found["metrics"].values():
        parts = {"mean": metric["label"], "held_in": "  held in", "held_out": "  held out"}
        parts = {label: metric[group] for group, label in parts.items() if metric.get(group)}
        if not parts:
            parts = {f"{metric['label']} {name}": part for name, part in metric["per_encoder"].items()}
        for label, part in parts.items():
            low, high = map(_number, part["ci95"])
            numbers = (_number(part[key]) for key in ("a", "b", "difference"))
            chances = (_chance(part[key]) for key in ("p", "corrected"))
            better = f"{part['better'].upper()} is better" if part["better"] else ""
            rows.append((label, *numbers, f"{low} to {high}", *chances, better))
    return "\n".join(_aligned(rows))


def _aligned(rows: list[tuple[str, ...]], left: tuple[int, ...] = (0,)) -> list[str]:
    """Some columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for cells in rows:
        padded = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def _chance(p: float | None) -> str:
    return "" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def _value(estimate: Estimate | None) -> str:
    return _number(estimate.value if estimate else None)


def _interval(estimate: Estimate) -> str:
    return " to ".join(map(_number, estimate.ci95)) if estimate.ci95 else ""


def _number(value: float | None) -> str:
    """Without an exponent, short enough for a column; never -0.00."""
    if value is None:
        return "-"
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"
    return text if float(text) else "0.00"
