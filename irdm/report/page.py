"""The report: a run directory in, one self-contained HTML page out. No request leaves the page, and it stays small."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from irdm.checkpoint import write_atomic
from irdm.images import png_bytes
from irdm.report.charts import Axis, Mark, Series, bars, lines, number, ratio, ruler, strips
from irdm.report.read import Run, read_run

GALLERY_BYTES, PAIR_BYTES = 2_000_000, 600_000  # raw pixels; base64 PNG of pure noise would be a third more
PAIRS = 8
SAYS = {
    "mean": "Sliced Wasserstein distance to the training images, over that of a fresh real draw.",
    "held_in": "The encoders the generator was trained against.",
    "held_out": "Encoders that training never saw: gaming the battery shows here.",
    "unseen": "Against test images that nothing was fitted to; memorising cannot push it below 1.",
    "mmd": "A second distance, by random Fourier features; it is squared, so it spreads wider.",
    "near": "Median pixel distance to the closest training image, over that of test images. Copies score 0.",
    "label": "How often a classifier outside the battery ({}) finds the class that was asked for.",
}


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run directory and return its path.

    A run that was interrupted or is still going on gives a page that says so, with what there is.
    Raises ValueError when the folder is not a run directory or holds a broken file (see `irdm.report.read.read_run`).
    """
    run = read_run(Path(run_dir))
    path = run.folder / "report.html"
    write_atomic(path, render("template.html", _context(run)))
    return path


def render(template: str, context: dict[str, Any]) -> str:
    """A page of this folder, with the filters that its templates use."""
    loader = PackageLoader("irdm.report", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "ratio": ratio, "percent": percent, "duration": duration}
    return environment.get_template(template).render(context)


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "–" if value is None else f"{100 * value:.1f}%"


def duration(seconds: float | None) -> str:
    """Seconds for people: 4.2 s, 2 min 31 s, 3 h 05 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _context(run: Run) -> dict[str, Any]:
    result = run.result
    last = run.metrics[-1] if run.metrics else {}
    return {
        "name": run.folder.resolve().name,
        "done": bool(result),
        "result": result,
        "notes": run.notes,
        "last_step": last.get("step"),
        "skipped": last.get("skipped") or 0,
        "command": result.get("command") or f"irdm train --config {run.folder / 'config.json'}",
        "config": json.dumps(run.config, indent=2, ensure_ascii=False),
        "sizes": run.reference.get("sizes", {}),
        "held_out": run.reference.get("held_out", []),
        "ruler": score_ruler(result),
        "bars": score_bars(result),
        "figures": _key_figures(result) if result else [],
        "seconds": _seconds(result.get("seconds") or {}),
        "gallery": _gallery(run.samples),
        "pairs": _pairs(run.samples),
        "latest": None if run.samples else _latest_grid(run.folder / "samples"),
        "curves": _curves(run),
    }


def score_ruler(result: dict) -> Any:
    score, unseen = result.get("sw_ratio") or {}, result.get("sw_ratio_unseen") or {}
    rows = [
        ("All encoders", score.get("mean"), "all", score.get("ci95")),
        ("Held in", score.get("held_in"), "in", score.get("held_in_ci95")),
        ("Held out", score.get("held_out"), "out", score.get("held_out_ci95")),
        ("Unseen real", unseen.get("mean"), "unseen", unseen.get("ci95")),
        ("Real control", score.get("real_control"), "real", None),
    ]
    marks = [Mark(name, value, kind, ci) for name, value, kind, ci in rows if value is not None]
    if not marks:
        return None
    spoken = "; ".join(f"{m.name} {ratio(m.value)}" for m in marks)
    return ruler(marks, f"Distance to real data on a logarithmic axis, real = 1.00: {spoken}.")


def score_bars(result: dict) -> Any:
    rows = (result.get("sw_ratio") or {}).get("per_encoder") or {}
    unseen = (result.get("sw_ratio_unseen") or {}).get("per_encoder") or {}
    marks = [
        Mark(name, row["value"], "out" if row["held_out"] else "in", row.get("ci95"), unseen.get(name, {}).get("value"))
        for name, row in sorted(rows.items(), key=lambda item: (item[1]["held_out"], item[1]["value"]))
    ]
    if not marks:
        return None
    spoken = "; ".join(f"{m.name}{' (held out)' if m.kind == 'out' else ''} {ratio(m.value)}" for m in marks)
    return bars(marks, f"Distance to real by encoder, real = 1.00: {spoken}.")


def _key_figures(result: dict) -> list[dict[str, str]]:
    """The rows of the key figures: what, this run, its 95% interval, real images on the same scale, what it says."""
    sw, unseen, mmd = (result.get(name) or {} for name in ("sw_ratio", "sw_ratio_unseen", "mmd_ratio"))
    near, label = result.get("nearest_neighbour_ratio") or {}, result.get("label_accuracy") or {}

    def control(held_out: bool) -> float:
        rows = [row.get("real_control", 1.0) for row in sw["per_encoder"].values() if row["held_out"] == held_out]
        return sum(rows) / len(rows) if rows else 1.0

    ratios = [
        ("SW ratio, all encoders", sw.get("mean"), sw.get("ci95"), sw.get("real_control", 1.0), SAYS["mean"]),
        ("SW ratio, held in", sw.get("held_in"), sw.get("held_in_ci95"), control(False), SAYS["held_in"]),
        ("SW ratio, held out", sw.get("held_out"), sw.get("held_out_ci95"), control(True), SAYS["held_out"]),
        ("SW ratio, unseen real", unseen.get("mean"), unseen.get("ci95"), 1.0, SAYS["unseen"]),
        ("MMD ratio", mmd.get("mean"), mmd.get("ci95"), mmd.get("real_control", 1.0), SAYS["mmd"]),
        ("Nearest neighbour ratio", near.get("value"), None, 1.0, SAYS["near"]),
    ]
    rows = [
        {"what": what, "value": ratio(value), "real": ratio(real), "says": says, "ci": " – ".join(map(ratio, ci or ()))}
        for what, value, ci, real, says in ratios
        if value is not None
    ]
    if label.get("generated") is not None:
        value, real = percent(label["generated"]), percent(label.get("real_test"))
        says = SAYS["label"].format(label.get("classifier"))
        rows.append({"what": "Label accuracy", "value": value, "real": real, "says": says, "ci": ""})
    return rows


def _seconds(seconds: dict[str, float]) -> list[dict[str, Any]]:
    total = seconds.get("total") or sum(seconds.values()) or 1.0
    return [{"name": name, "seconds": s, "share": 100 * s / total} for name, s in seconds.items() if name != "total"]


def _uri(array: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(np.ascontiguousarray(array))).decode()


def image_uris(images: np.ndarray, side: int) -> list[str]:
    return [_uri(image) for image in _fit(images, side)] if len(images) else []


def _fit(images: np.ndarray, side: int) -> np.ndarray:
    """The images with no side longer than `side`, smoothly reduced; smaller ones stay as they are."""
    longest = max(images.shape[1:3])
    if longest <= side:
        return images
    h, w = (max(1, round(x * side / longest)) for x in images.shape[1:3])
    small = [np.asarray(Image.fromarray(i.squeeze()).resize((w, h), Image.Resampling.LANCZOS)) for i in images]
    return np.stack(small).reshape(len(images), h, w, images.shape[3])


def _gallery(samples: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """A row a class: images generated, images real. Large images: fewer, reduced until the page stays light."""
    if not samples or not len(samples["generated"]):
        return None
    labels = np.unique(samples["generated_labels"])
    most, each = (20, 10) if max(samples["generated"].shape[1:3]) <= 64 else (12, 5)
    chosen = labels[np.unique(np.linspace(0, len(labels) - 1, min(most, len(labels))).round().astype(int))]
    channels = samples["generated"].shape[3]
    side = int((GALLERY_BYTES / (2 * len(chosen) * each * channels)) ** 0.5)
    rows = []
    for label in chosen:
        fake = samples["generated"][samples["generated_labels"] == label][:each]
        real = samples["real"][samples["real_labels"] == label][:each]
        rows.append({"label": str(label), "fake": image_uris(fake, side), "real": image_uris(real, side)})
    return {"rows": rows, "shown": len(chosen), "classes": len(labels), "each": each}


def _pairs(samples: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """The closest pairs, where copying would show first, and pairs around the median distance."""
    if not samples or not len(samples["generated"]):
        return None
    distance = samples["neighbour_distance"]
    order = np.argsort(distance, kind="stable")
    closest, rest = order[:PAIRS], order[PAIRS:]
    start = max(0, min(len(rest) - PAIRS, len(order) // 2 - PAIRS - PAIRS // 2))
    side = int((PAIR_BYTES / (4 * PAIRS * samples["generated"].shape[3])) ** 0.5)

    def cards(rows: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "fake": image_uris(samples["generated"][i : i + 1], side)[0],
                "real": image_uris(samples["neighbours"][i : i + 1], side)[0],
                "label": str(samples["generated_labels"][i]),
                "distance": f"{distance[i]:.2f}",
            }
            for i in rows
        ]

    groups = [
        ("The closest", "Copying would show here first.", cards(closest)),
        ("The typical", "Around the median distance.", cards(rest[start : start + PAIRS])),
    ]
    return {"groups": [g for g in groups if g[2]], "count": len(order)}


def _latest_grid(folder: Path) -> dict[str, Any] | None:
    """The last sample grid of a run that was not evaluated, reduced to fit."""
    grids = sorted(folder.glob("*.png"), key=lambda p: p.stat().st_mtime)
    if not grids:
        return None
    try:
        with Image.open(grids[-1]) as file:
            picture = np.asarray(file.convert("RGB"))
    except OSError as error:
        raise ValueError(f"{grids[-1]} cannot be read ({error}). Delete it; the run writes a new one.") from None
    return {"src": image_uris(picture[None], 900)[0], "name": grids[-1].stem}


def _curves(run: Run) -> dict[str, Any]:
    """Everything that was logged over steps; what was not logged is left out."""
    metrics = run.metrics

    def over(get: Any) -> list[tuple[int, float | None]]:
        return [(row["step"], get(row)) for row in metrics]

    def plain(key: str, alt: str, **options: Any) -> Any:
        if not any(row.get(key) is not None for row in metrics):
            return None
        return lines([Series(key, over(lambda row: row.get(key)))], f"{alt} over training steps.", **options)

    floors = run.reference.get("floors", {})
    names = list(dict.fromkeys(name for row in metrics for name in row.get("scores") or {}))
    scores = {name: over(lambda row, name=name: (row.get("scores") or {}).get(name)) for name in names}
    shared = Axis.around([*(v for points in scores.values() for _, v in points), *floors.values()], log=True)
    panels = [
        {
            "name": name,
            "last": scores[name][-1][1],
            "floor": floors.get(name),
            "svg": lines(
                [Series(name, scores[name], "in")],
                f"Score of {name} over training steps, log axis, with its floor at {number(floors.get(name))}.",
                y=shared,
                level=floors.get(name),
                height=110,
                ticks=3,
            ),
        }
        for name in names
    ]
    weights = list(dict.fromkeys(name for row in metrics for name in row.get("weights") or {}))
    lambdas = [Series(n, over(lambda row, n=n: (row.get("weights") or {}).get(n))) for n in weights]
    checks = [(row["step"], row["check"]) for row in metrics if row.get("check")]
    alarms = [step for step, check in checks if check.get("alarm")]
    groups = [(key, [(step, check.get(key)) for step, check in checks]) for key in ("held_in", "held_out")]
    quick = [Series(k, points, k[5:]) for k, points in groups if any(v is not None for _, v in points)]
    spoken = ", ".join(f"{s.name.replace('_', ' ')} {ratio(s.points[-1][1])}" for s in quick)
    alt = f"Quick check over training steps: last {spoken}; real = 1.00. Alarms: {len(alarms)}."
    chart = lines(quick, alt, log=True, level=1.0, flags=alarms, height=220) if quick else None
    return {
        "scores": panels,
        "weights": strips(lambdas, "Weight of each encoder over training steps.") if lambdas else None,
        "check": chart,
        "alarms": alarms,
        "checks": len(checks),
        "lr": plain("lr", "Learning rate", zero=True),
        "grad": plain("grad_norm", "Gradient norm, log axis,", log=True),
        "loss": plain("loss", "Training loss"),
        "speed": plain("images_per_second", "Images per second", zero=True),
    }
