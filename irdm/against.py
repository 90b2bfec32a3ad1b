"""What images are compared with, and a run compared with it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from irdm.browser import FILE, Unwritable, write_program
from irdm.build import build_battery, reference_of
from irdm.conditions import Conditions, draw
from irdm.data import printable
from irdm.data.base import Shape, Split
from irdm.data.image_source import ImageSource
from irdm.distributed import Ranks
from irdm.encoders import Battery
from irdm.evaluation import (
    EvaluationConfig,
    Real,
    Result,
    closest_pairs,
    embed,
    evaluate_tables,
    gallery,
    judge,
    read_result,
    real_of,
    write_result,
    write_samples,
)
from irdm.evaluation.sensitivity import LADDER, Sensitivity, measure
from irdm.fields import UsageError
from irdm.files import MANIFEST, locked
from irdm.generate import Drawn
from irdm.images import image_grid, save_png
from irdm.metrics.tables import row_order
from irdm.presets import run_of_images
from irdm.progress import Say, silent
from irdm.reference import open_reference
from irdm.reference.imported import to_judge
from irdm.run import CONFIG, RESULT, LoadedRun, load_run
from irdm.store.reference import PLAN


def evaluate_run(
    run: Path,
    path: Path | None = None,
    out: Path | None = None,
    *,
    config: EvaluationConfig | None = None,
    names: tuple[str, ...] | None = None,
    weights: Path | None = None,
    size: int | None = None,
    count: int | None = None,
    teacher: int | None = None,
    device: str | None = None,
    ranks: Ranks | None = None,
    is_locked: bool = False,
    training: dict[str, Any] | None = None,
    seconds: dict[str, float] | None = None,
    command: str | None = None,
    progress: Say = print,
) -> Result | None:
    """Judge the averaged weights of a run; write result.json, samples.npz, a picture and report.html into `out`.

    Under torchrun every rank calls this and draws and embeds its share; the main rank judges and returns the result.

    Args:
        run: the run directory.
        path: what its images are compared with, as `open_real` takes it; None is the run's own data or reference, and
            `out` is then the run itself.
        out: where the result goes; needed with a path.
        config: how to judge; None as the run's configuration says.
        names: only these encoders; means are then partial, and say so.
        weights: folder of the weights of pretrained encoders.
        size: side of the real images of a folder, as `open_real` takes it.
        count: images to draw; None is `config.draws` full draws.
        teacher: judge in place of the run the model that it began from, in so many steps from the same noise and
            conditions; `out` is then RUN/teacher-STEPS, where none is given.
        device: where to compute; None as the run's configuration says.
        ranks: this process among its peers.
        is_locked: the caller holds the directory already.
        training: what the trainer says of itself; None keeps what the earlier result says.
        seconds: what each phase before took; None keeps those of the earlier result.
        command: what the user typed; a run judged again on its own keeps that of its training.
        progress: receives a line of text now and then.

    Raises:
        ValueError: for a run that cannot be opened, data that changed, a reference of images of another shape.
    """
    from irdm.report import write_report

    began, ranks = time.monotonic(), ranks or Ranks()
    target = out or (run / f"teacher-{teacher}" if teacher else run)
    loaded = ranks.in_turn(lambda: load_run(run, device))
    if teacher:
        loaded = loaded.teacher(teacher)
    earlier = _earlier(target / RESULT)
    if target == run and training is None and earlier and earlier.command:
        command = earlier.command  # a run goes on saying how it was made
    config = config or loaded.config.evaluation or EvaluationConfig()
    with nullcontext() if is_locked or not ranks.is_main else locked(target, "evaluated"):
        with ranks.together():
            against = open_real(
                path,
                loaded,
                config,
                names,
                weights,
                size=size,
                ranks=ranks,
                device=loaded.device,
                command=command,
                progress=progress,
            )
            real = against.real
            if loaded.image_shape != against.image_shape:
                raise ValueError(
                    f"{run} draws images {list(loaded.image_shape)}, but the reference is of images "
                    f"{list(against.image_shape)}. Write images with `irdm sample {run} --format files` and judge "
                    "that folder: it is brought to the reference's size."
                )
            asked = real.train.conditions
            if asked.spec != loaded.spec:
                asked = loaded.dataset.train.conditions
            conditions = conditions_to_judge(asked, len(real.val), config, count)
        generated = loaded.drawn(conditions, config.seed)
        encoders = dict(against.battery.encoders.items())
        table = embed(
            generated, encoders, micro_batch=config.micro_batch, device=loaded.device, ranks=ranks, progress=progress
        )
        scores = judge(table, real, config, ranks=ranks, progress=progress)
        if not ranks.is_main:
            return None
        spent = {**(seconds or (earlier.seconds if earlier else {}))}
        total = spent.pop("this_call", 0.0)
        result = evaluate_tables(
            table,
            real,
            config,
            source={
                "path": f"{run}, teacher in {teacher} steps" if teacher else str(run),
                "images": len(generated),
                "fingerprint": generated.fingerprint,
            },
            reference=against.about,
            missing=against.missing,
            scores=scores,
            ladder=against.ladder(),
            step=loaded.step,
            training=training or (earlier.training if earlier else None),
            hardware=_hardware(loaded.device),
            seeds={
                "run": loaded.config.seed,
                "battery": getattr(loaded.config.battery, "seed", None),
                "evaluation": config.seed,
            },
            command=command or f"irdm eval {run}",
            progress=progress,
        )
        spent["evaluate"] = time.monotonic() - began
        parts = sum(spent.get(name, 0.0) for name in ("encoders", "reference", "train", "evaluate"))
        spent["total"] = max(parts, total + spent["evaluate"])
        result = result.model_copy(update={"seconds": spent})
        shown = gallery(generated, against.pictures, config.gallery, config.seed)
        shown |= closest_pairs(result.scores, table, real)
        write_samples(target / "samples.npz", shown)
        try:
            if not teacher:
                write_program(target / FILE, loaded.generator, loaded.spec)
        except Unwritable as error:
            (progress or silent)(f"the report cannot draw pictures of its own: {error}")
        pictures = torch.from_numpy(shown["generated"]).float() / 255
        save_png(target / "samples" / "final.png", image_grid(pictures, config.gallery))
        write_result(target / RESULT, result)
        write_report(target)
        return result


def conditions_to_judge(
    train: Conditions, held_out: int, config: EvaluationConfig, count: int | None = None
) -> Conditions:
    """What a generator that is judged is asked for: `count` conditions of train rows, in their proportions.

    Without a count, `config.draws` times as many as one ratio compares with so many held-out images.
    """
    count = count or config.draws * min(config.rows, len(train), held_out // 2)
    return train[draw(train, count, "evaluate", config.seed)]


def judged_images(loaded: LoadedRun) -> Drawn:
    """The images that `evaluate_run` judges on the run's own data or reference, in their order."""
    config = loaded.config.evaluation or EvaluationConfig()
    if (reference := to_judge(loaded.config.reference)) is not None:
        real = open_reference(reference).real()
        train, held_out = real.train.conditions, len(real.val)
    else:
        dataset = loaded.dataset
        rows = row_order(len(dataset.train), config.seed)[: config.table_rows]
        train, held_out = dataset.train.conditions[rows], min(len(dataset.val), config.table_rows)
    return loaded.drawn(conditions_to_judge(train, held_out, config), config.seed)


@dataclass(frozen=True)
class Against:
    """What images are compared with: the real side, the encoders that made it, and what a result says of both."""

    real: Real
    battery: Battery
    name: str
    counts: tuple[int, int]
    """Images of train and of val."""
    image_shape: Shape
    missing: tuple[str, ...]
    """Encoders that are there and were not asked for."""
    pictures: Split
    """Some val images, for people."""
    ladder: Callable[[], Sensitivity | None]
    """What the scores see here, read or measured when it is asked for."""

    @property
    def about(self) -> dict[str, Any]:
        """`Result.reference`."""
        train, val = self.counts
        return {"name": self.name, "train": train, "val": val, "size": list(self.image_shape)}


def open_real(
    path: Path | None,
    own: LoadedRun | None,
    config: EvaluationConfig,
    names: tuple[str, ...] | None = None,
    weights: Path | None = None,
    *,
    size: int | None = None,
    judged: ImageSource | None = None,
    ranks: Ranks | None = None,
    device: str = "cpu",
    command: str | None = None,
    progress: Say = silent,
) -> Against:
    """The real side that a path stands for; None is `own`, a run.

    A reference is itself. A run stands for its data, or for the reference that it was trained against. A folder or an
    archive of real images is divided in two halves, and a reference of them is built in irdm's cache, or found there,
    when images that will be `judged` have been looked at beside them.

    Raises ValueError for what cannot be opened, and for a reference that is not the one a run was trained against;
    UsageError for encoders that there are not, or a `size` that only a folder can be brought to.
    """
    ranks = ranks or Ranks()
    if path is not None and not path.exists():
        raise ValueError(
            f"There is no {path}. Images are compared with a folder or an archive of real images, a run, or a "
            "reference: its directory, or its name in references/."
        )
    of_images = path is not None and not any((path / name).exists() for name in (CONFIG, PLAN, MANIFEST))
    if size is not None and not of_images:
        raise UsageError("--size is for a folder or an archive of real images; a reference and a run have their own")
    if path is not None and (path / CONFIG).exists():
        own, path = load_run(path, device), None
    if own is not None:
        weights = weights or getattr(own.config.battery, "weights", None)
    if own is not None and path is None:
        device, path = own.device, to_judge(own.config.reference)
        if path is None:
            return _own_data(own, config, names, weights, ranks, progress)
    assert path is not None, "a reference, a run or images"
    if of_images:
        run = run_of_images(path, names=names or (), size=size, weights=weights, judge_only=True)
        opened = reference_of(
            run,
            printable(path.stem),
            None,
            judge_only=True,
            micro_batch=config.micro_batch,
            device=device,
            ranks=ranks,
            command=command,
            progress=progress,
            judged=judged,
        )
        progress(
            f"The reference is kept in {opened.path}; for one with a name: irdm reference build NAME --train {path} "
            "--judge-only"
        )
        names = None  # it has those that were asked for
    else:
        opened = open_reference(path, device)
    recorded = own.recorded.get("reference") if own is not None and own.config.reference == path else None
    if own is not None and recorded is not None and recorded["address"] != opened.address:
        raise ValueError(f"{path} is not the reference that {own.path} was trained against; build that again.")
    offload = own is not None and getattr(own.config.battery, "offload", False)
    battery = opened.battery(names, weights, offload)
    used = tuple(battery.encoders.keys())
    return Against(
        opened.real(used),
        battery,
        opened.name,
        (opened.plan["train"]["count"], opened.plan["val"]["count"]),
        opened.image_shape,
        tuple(name for name in opened.names if name not in used),
        opened.samples(),
        lambda: opened.ladder,
    )


def _own_data(
    own: LoadedRun,
    config: EvaluationConfig,
    names: tuple[str, ...] | None,
    weights: Path | None,
    ranks: Ranks,
    progress: Say,
) -> Against:
    """A run's own images, embedded now by its own encoders."""
    dataset, device = own.dataset, own.device
    battery = ranks.main_first(lambda: build_battery(own.config, dataset, None, device, progress))
    battery, missing = battery.only(names)
    real = real_of(dataset, battery, config, device=device, weights=weights, ranks=ranks, progress=progress)
    counts, name = (len(dataset.train), len(dataset.val)), f"the data of {own.path.resolve().name}"
    ladder = partial(
        measure,
        dataset,
        dict(battery.encoders.items()),
        real,
        config,
        device=device,
        kept=None if missing else own.path / LADDER,
        progress=progress,
    )
    return Against(real, battery, name, counts, dataset.image_shape, missing, dataset.val, ladder)


def _earlier(path: Path) -> Result | None:
    """The result that is there, to keep what it says of training; a damaged one is written anew."""
    try:
        return read_result(path) if path.exists() else None
    except ValueError as error:
        print(f"warning: {error} It is written anew; what it said of training is lost.")
        return None


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
