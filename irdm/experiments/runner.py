"""Run a study: its cells side by side, one core each, resumable; then the table, the figure and the results page."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from irdm import __version__
from irdm.experiments.base import Cell, Study, Table, Values
from irdm.experiments.page import section
from irdm.files import write_atomic


def run_study(
    study: Study,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    scale: float = 1.0,
    workers: int | None = None,
    command: str = "",
    progress: Callable[[str], None] = print,
) -> dict:
    """Train and measure every cell for every seed, and write `out`: result.json, figure.png, results.md, cells/.

    A finished cell is not run again, and an interrupted one goes on from its checkpoint, bit for bit. Each worker
    process computes with one thread, so that times of different cells compare.

    Args:
        scale: share of the full iterations or seconds; only 1 gives the recorded results.
        workers: cells at a time; by default one a core.

    Raises:
        ValueError: for a scale outside (0, 1], repeated seeds, or an `out` that holds the cells of another study.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"The scale is {scale}; give a share of the full study, above 0 and at most 1.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"The seeds are {list(seeds)}; give at least one, each once.")
    cells = study.cells(scale)
    todo, found = [], {}
    for seed in seeds:
        for name, cell in cells.items():
            folder = cell_folder(out, name, seed)
            known = read_cell(folder, cell)
            if known is None:
                todo.append((name, cell, folder, seed))
            else:
                found[name, seed] = known
    total = len(todo) + len(found)
    progress(f"{study.name}: {total} runs, {len(found)} done already; {study.title}")
    if todo:
        _run_all(todo, found, total, workers or os.cpu_count() or 1, progress)

    rows: dict[str, dict[str, list[float]]] = {}
    for name in cells:
        for seed in seeds:
            for row, numbers in found[name, seed].items():
                for column, number in numbers.items():
                    rows.setdefault(row, {}).setdefault(column, []).append(number)
    table = {row: {column: Values(tuple(v)) for column, v in columns.items()} for row, columns in rows.items()}
    return _write(study, table, out, seeds, scale, command)


def _run_all(todo: list, found: dict, total: int, workers: int, progress: Callable[[str], None]) -> None:
    """Run the cells of `todo`, in this process or in several, and put their rows into `found`."""
    began, before = time.monotonic(), len(found)

    def done(name: str, seed: int, rows: dict) -> None:
        found[name, seed] = rows
        spent = time.monotonic() - began
        left = spent / (len(found) - before) * (total - len(found))
        progress(f"[{len(found)}/{total}] {name}, seed {seed}   {spent:.0f} s, about {left:.0f} s left")

    if workers == 1:
        threads = torch.get_num_threads()
        _one_thread()
        try:
            for name, cell, folder, seed in todo:
                done(name, seed, run_cell(name, cell, folder, seed))
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=_begin_worker) as pool:
        running = {pool.submit(run_cell, *job): (job[0], job[3]) for job in todo}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    done(*running.pop(future), future.result())
        except BaseException:
            for future in running:
                future.cancel()
            raise


def _one_thread() -> None:
    torch.set_num_threads(1)


def _begin_worker() -> None:
    """One thread; and an end when the study is killed, so that nobody writes where it is begun again."""
    _one_thread()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_cell(name: str, cell: Cell, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Run one cell and remember its rows in `folder`.json; what it prints goes to `folder`.log."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "a") as log, contextlib.redirect_stdout(log):
        rows = cell.run(name, folder, seed)
    _release_memory()
    write_atomic(folder.with_suffix(".json"), json.dumps({"key": cell.key, "rows": rows}, indent=1))
    return rows


def _release_memory() -> None:
    """Give freed memory back: the trainer asks glibc to keep it, and what one run after another leaves adds up."""
    gc.collect()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def read_cell(folder: Path, cell: Cell) -> dict[str, dict[str, float]] | None:
    """The rows of a finished cell, or None. Raises ValueError when the file is of another configuration."""
    path = folder.with_suffix(".json")
    if not path.exists():
        return None
    body = json.loads(path.read_text())
    if body["key"] != cell.key:
        raise ValueError(
            f"{path} was measured with another configuration (or another scale). Choose another --out, or delete it."
        )
    return body["rows"]


def cell_folder(out: Path, name: str, seed: int) -> Path:
    """The run directory of a cell in the folder of its study."""
    return out / "cells" / "".join(c if c.isalnum() or c == "." else "-" for c in name) / f"seed-{seed}"


def _write(study: Study, table: Table, out: Path, seeds: Sequence[int], scale: float, command: str) -> dict:
    result = {
        "study": study.name,
        "title": study.title,
        "claims": [asdict(claim) for claim in study.claims(table)],
        "rows": {row: {c: list(v.values) for c, v in columns.items()} for row, columns in table.items()},
        "seeds": list(seeds),
        "scale": scale,
        "date": date.today().isoformat(),
        "command": command,
        "hardware": f"{platform.machine()} CPU, one thread a run",
        "versions": {"irdm": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
    }
    figure, picture = study.figure(table, lambda cell, index: cell_folder(out, cell, seeds[index])), io.BytesIO()
    figure.savefig(picture, format="png", dpi=160, bbox_inches="tight")
    write_atomic(out / "figure.png", picture.getvalue())
    write_atomic(out / "result.json", json.dumps(result, indent=1))
    write_atomic(out / "results.md", section(study, result, "figure.png"))
    return result
