"""The report of an evaluation against a reference: its directory in, one self-contained HTML page out."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from irdm.checkpoint import write_atomic
from irdm.report.charts import number, ratio
from irdm.report.page import image_uris, render, score_bars, score_ruler

SHEET_BYTES = 1_500_000  # raw pixels of both sheets together
SAYS = {
    "sw_ratio": "Sliced Wasserstein distance to train, over that of fresh real images. Lower is better.",
    "mmd_ratio": "The same for a squared MMD, by random Fourier features. Lower is better.",
    "frechet_ratio": "The same for the Frechet distance. Lower is better.",
    "precision": "Share of the images that lie among real ones.",
    "recall": "Share of real images that lie among these.",
    "density": "How many real neighbourhoods hold an image, over how many would be usual.",
    "coverage": "Share of real neighbourhoods that hold an image.",
    "closeness": "How often an image is closer to train than a fresh real one is: 0.5 is right, near 1 means copies.",
    "authenticity": "Share of the images further from their nearest train image than that one is from the next.",
    "copies": "Share of the images that are train images saved again, or nearly so.",
}


def write_evaluation_report(folder: Path) -> Path:
    """Write `report.html` beside the `result.json` and `samples.npz` of an evaluation and return its path.

    Raises ValueError when one of them is missing or broken.
    """
    folder = Path(folder)
    result, samples = _read(folder)
    path = folder / "report.html"
    write_atomic(path, render("evaluation.html", _context(folder, result, samples)))
    return path


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        with np.load(folder / "samples.npz", allow_pickle=False) as file:
            samples = {name: file[name].transpose(0, 2, 3, 1) for name in ("generated", "real")}
        if result["kind"] != "evaluation":
            raise ValueError(f"its kind is {result['kind']!r}")
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder} holds no whole evaluation ({error!r}). Repeat its `irdm eval`.") from error
    return result, samples


def _context(folder: Path, result: dict[str, Any], samples: dict[str, np.ndarray]) -> dict[str, Any]:
    side = int((SHEET_BYTES / (3 * sum(map(len, samples.values())))) ** 0.5)
    return {
        "name": Path(result["source"]["path"]).name,
        "result": result,
        "ruler": score_ruler(result),
        "bars": score_bars(result),
        "rows": [_row(result[name], SAYS[name]) for name in SAYS if name in result],
        "frechet": result["frechet_distance"]["per_encoder"],
        "encoders": _by_encoder(result),
        "columns": [result[name]["name"] for name in SAYS if name in result],
        "sheets": [
            (title, image_uris(samples[key], side)) for title, key in (("Judged", "generated"), ("Real", "real"))
        ],
        "pickscore": result.get("pickscore"),
        "command": result["command"] or "a library call of irdm.judging.evaluate_source",
        "protocol": json.dumps(result["protocol"], indent=2),
    }


def _row(score: dict[str, Any], says: str) -> dict[str, str]:
    span = " – ".join(map(ratio, score["ci95"] or ()))
    cells = {key: ratio(score.get(key)) for key in ("mean", "held_in", "held_out", "real_control")}
    return {"what": score["name"], "ci": span, "says": says, **cells}


def _by_encoder(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row an encoder: every score with its interval."""
    names = [name for name in SAYS if name in result]
    return [
        {
            "name": encoder,
            "held_out": row["held_out"],
            "cells": [
                {"value": ratio(part["value"]), "ci": " – ".join(map(number, part["ci95"] or ()))}
                for part in (result[name]["per_encoder"][encoder] for name in names)
            ],
        }
        for encoder, row in result["sw_ratio"]["per_encoder"].items()
    ]
