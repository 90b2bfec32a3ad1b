"""The tables that commands print: of the scores of one evaluation, and of the differences of two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from irdm.evaluation import Result
    from irdm.metrics.score import Estimate

COLUMNS = ("all", "held in", "held out", "95% interval", "real")


def score_table(result: Result) -> str:
    """A row a score, whatever scores there are; by encoder where they have no common scale; then the warnings."""
    rows: list[tuple[str, ...]] = [("", *COLUMNS)]
    for score in result.scores.values():
        if whole := score.mean or score.held_out or score.held_in:
            groups = (score.mean, score.held_in, score.held_out)
            rows.append((score.label, *map(_value, groups), _interval(whole), _number(whole.control)))
        else:
            rows += [(score.label, *("" for _ in COLUMNS))] if score.encoders else []
            rows += [
                (f"  {name}", _value(found), "", "", _interval(found), _number(found.control))
                for name, found in score.encoders.items()
            ]
    return "\n".join([*_aligned(rows), *(f"\nnote: {warning}" for warning in result.warnings)])


def comparison_table(found: Mapping[str, Any]) -> str:
    """A row a score and group, or encoder where they have no common scale: A, B, B - A, interval, the better one."""
    rows: list[tuple[str, ...]] = [("", "A", "B", "B - A", "95% interval", "")]
    for metric in found["metrics"].values():
        parts = {"mean": metric["label"], "held_in": "  held in", "held_out": "  held out"}
        parts = {label: metric[group] for group, label in parts.items() if metric.get(group)}
        if not parts:
            parts = {f"{metric['label']} {name}": part for name, part in metric["per_encoder"].items()}
        for label, part in parts.items():
            low, high = map(_number, part["ci95"])
            numbers = (_number(part[key]) for key in ("a", "b", "difference"))
            better = f"{part['better'].upper()} is better" if part["better"] else ""
            rows.append((label, *numbers, f"{low} to {high}", better))
    return "\n".join(_aligned(rows))


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *padded]).rstrip())
    return lines


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
