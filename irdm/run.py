"""A run directory: claim it, record what it stands on, open it, judge it. What is in it stands in docs/design.md."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from irdm.build import build_battery, build_generator, cache_dir, resolve_device
from irdm.checkpoint import load_latest, restore
from irdm.conditions import ClassSpec, Conditions, ConditionSpec, NoSpec, draw
from irdm.data import Dataset
from irdm.data.base import Shape, Split
from irdm.distributed import Ranks
from irdm.encoders import Battery
from irdm.evaluation import (
    EvaluationConfig,
    Real,
    Result,
    embed,
    evaluate_tables,
    gallery,
    read_result,
    real_of,
    write_result,
    write_samples,
)
from irdm.fields import UsageError, validate
from irdm.files import locked, read_manifest, visible, write_manifest
from irdm.generate import Drawn
from irdm.generators import Generator
from irdm.images import image_grid, save_png
from irdm.metrics.tables import row_order
from irdm.presets import RunConfig
from irdm.reference import OpenReference, Reference, open_reference

__all__ = ["LoadedRun", "cache_dir", "claim_run", "evaluate_run", "load_run", "read_config", "resolve_device"]

CONFIG, RECORD, RESULT = "config.json", "reference.json", "result.json"
AGAIN = "Repeat the run's own `irdm train` to write it again."
RECORDED = ("data_fingerprint", "reference", "spec", "image_shape", "encoders")
SPECS: TypeAdapter[ClassSpec | NoSpec] = TypeAdapter(ConditionSpec)


def claim_run(out: Path, config: RunConfig) -> None:
    """Make `out` the directory of this configuration, or find that it already is.

    What changes no number (`free` fields) may differ, and so may the number of steps while the learning rate does not
    depend on it; the directory then goes on with the new values.

    Raises:
        ValueError: when it holds another run or other files.
        OSError: when it cannot be written.
    """
    path = out / CONFIG
    if path.exists():
        found = read_config(path)
        theirs, ours = (_flat({**c.identity(), "steps": c.steps}) for c in (found, config))
        names = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        if names == ["steps"] and config.final_lr == 1:
            names = []
        if names:
            lines = [f"  {k}: {theirs.get(k, 'the default')} there, {ours.get(k, 'the default')} now" for k in names]
            if "steps" in names and config.final_lr != 1:
                lines.append("  (with final_lr below 1 the learning rate of every step depends on the number of steps)")
            raise ValueError(
                f"{out} holds a run of another configuration:\n" + "\n".join(lines) + "\n"
                "Choose another --out, repeat that run's own command to resume it, or delete the folder."
            )
        if found == config:
            return
    elif out.exists() and (not out.is_dir() or visible(out)):
        raise ValueError(f"{out} exists and is not a run directory (no {CONFIG} in it); choose another --out.")
    write_manifest(path, config.model_dump(mode="json"))


def read_config(path: Path) -> RunConfig:
    """The configuration of a run directory. Raises ValueError naming what is wrong in it."""
    try:
        body = read_manifest(path, "Restore it, or start a new run from a copy with `irdm train --config`.")
        return validate(RunConfig, body, strict=True)
    except FileNotFoundError:
        raise ValueError(f"{path} is not there: give a run directory made by `irdm train`.") from None
    except UsageError as error:
        raise ValueError(f"{path} is not a configuration of this irdm: {error}. Start a new run.") from None


def record_of(
    config: RunConfig, dataset: Dataset, battery: Battery, reference: Reference, prebuilt: OpenReference | None
) -> dict[str, Any]:
    """reference.json: what a run stands on, and what a reader needs to know of its data without the data."""
    return {
        "floors": reference.floors,
        "sizes": {"train": len(dataset.train), "val": len(dataset.val)},
        "held_in": list(battery.held_in),
        "held_out": list(battery.held_out),
        **_stands_on(dataset, prebuilt),
    }


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write reference.json."""
    write_manifest(out / RECORD, record)


def check_record(
    out: Path, dataset: Dataset, prebuilt: OpenReference | None, say: Callable[[str], None] = lambda text: None
) -> None:
    """A run goes on with the data and the reference that it began with.

    Raises ValueError naming what changed.
    """
    if not (out / RECORD).exists():
        return
    recorded, now = read_record(out), _stands_on(dataset, prebuilt)
    changed = [name for name in now if recorded.get(name) != now[name]]
    if changed:
        what = {
            "data_fingerprint": "the images or their conditions are other ones",
            "reference": "the reference is another one",
            "spec": "the conditions have other names",
            "image_shape": "the images have another shape",
        }
        raise ValueError(
            f"{out} was trained on something else: {'; '.join(what[name] for name in changed)}. Bring back what it was "
            "trained on to go on, or choose another --out."
        )


def read_record(out: Path) -> dict[str, Any]:
    """reference.json. Raises ValueError when it is missing, damaged, or of another irdm."""
    try:
        record = read_manifest(out / RECORD, AGAIN)
        record["spec"] = SPECS.validate_python(record["spec"]).model_dump(mode="json")
        if len(record["image_shape"]) != 3 or not all(isinstance(side, int) for side in record["image_shape"]):
            raise TypeError("image_shape")
        return record
    except FileNotFoundError:
        raise ValueError(f"{out / RECORD} is missing. {AGAIN}") from None
    except (KeyError, TypeError, ValidationError) as error:
        raise ValueError(f"{out / RECORD} is damaged or of another irdm ({error!r}). {AGAIN}") from None


def _stands_on(dataset: Dataset, prebuilt: OpenReference | None) -> dict[str, Any]:
    return {
        # Hashing a prebuilt reference's images again would read all of them; the address stands for them.
        "data_fingerprint": None if prebuilt else dataset.fingerprint,
        "reference": {"name": prebuilt.name, "address": prebuilt.address} if prebuilt else None,
        "spec": dataset.train.conditions.spec.model_dump(mode="json"),
        "image_shape": list(dataset.image_shape),
    }


@dataclass
class LoadedRun:
    """A trained run: its configuration, and the averaged weights in evaluation mode, on `device`."""

    path: Path
    config: RunConfig
    generator: Generator
    device: str
    step: int
    spec: ClassSpec | NoSpec
    image_shape: Shape
    recorded: dict[str, Any]
    """What reference.json says."""
    weights: str
    """The sha256 of the averaged weights."""

    @cached_property
    def dataset(self) -> Dataset:
        """The run's data, opened when it is asked for: drawing images needs none. Raises ValueError when it changed."""
        dataset = self.config.data.build()
        recorded = self.recorded.get("data_fingerprint")
        if recorded is not None and recorded != dataset.fingerprint:
            raise ValueError(
                f"{self.path} was trained on other data than is there now ({dataset.name}): fingerprint "
                f"{recorded[:12]}, now {dataset.fingerprint[:12]}. Bring back the data it was trained on."
            )
        return dataset

    def drawn(self, conditions: Conditions, seed: int) -> Drawn:
        """The images that the run draws for conditions."""
        return Drawn(
            self.generator, conditions, self.image_shape, seed,
            device=self.device, identity=self.weights, name=str(self.path),
        )  # fmt: skip


def load_run(run: Path, device: str | None = None) -> LoadedRun:
    """Open a trained run. Raises ValueError when it is no run or has no usable checkpoint."""
    config = read_config(run / CONFIG)
    device = resolve_device(device or config.device)
    checkpoint, refused = load_latest(run / "checkpoints")
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint yet; run `irdm train` on it first.")
    for problem in refused:
        print(f"warning: {problem} Using the one before, of step {checkpoint.step}.")
    record = read_record(run)
    spec, shape = SPECS.validate_python(record["spec"]), tuple(record["image_shape"])
    generator = build_generator(config, shape, spec, restored=True)
    restore(generator.trained(), checkpoint.tensors["ema"], run)
    generator = generator.to(device).eval().requires_grad_(False)
    return LoadedRun(
        run, config, generator, device, checkpoint.step, spec, shape, record, checkpoint.files["ema"]["sha256"]
    )


def evaluate_run(
    run: Path,
    reference: Path | None = None,
    out: Path | None = None,
    *,
    config: EvaluationConfig | None = None,
    names: tuple[str, ...] | None = None,
    weights: Path | None = None,
    count: int | None = None,
    device: str | None = None,
    ranks: Ranks | None = None,
    is_locked: bool = False,
    training: dict[str, Any] | None = None,
    seconds: dict[str, float] | None = None,
    command: str | None = None,
    progress: Callable[[str], None] = print,
) -> Result | None:
    """Judge the averaged weights of a run; write result.json, samples.npz, a picture and report.html into `out`.

    Under torchrun every rank calls this and draws and embeds its share; the main rank judges and returns the result.

    Args:
        run: the run directory.
        reference: a reference's directory, or another run's, whose real images are compared with; None takes the run's
            own data or reference, and `out` is then the run itself.
        out: where the result goes; needed with a reference.
        config: how to judge; None as the run's configuration says.
        names: only these encoders; means are then partial, and say so.
        weights: folder of the weights of pretrained encoders.
        count: images to draw; None is `config.draws` full draws.
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

    began, ranks, target = time.monotonic(), ranks or Ranks(), out or run
    loaded = load_run(run, device)
    earlier = _earlier(target / RESULT)
    if target == run and training is None and earlier and earlier.command:
        command = earlier.command  # a run goes on saying how it was made
    config = config or loaded.config.evaluation or EvaluationConfig()
    with nullcontext() if is_locked or not ranks.is_main else locked(target, "evaluated"):
        with ranks.together():
            against = open_real(
                reference, loaded, config, names, weights, ranks=ranks, device=loaded.device, progress=progress
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
        if not ranks.is_main:
            return None
        spent = {**(seconds or (earlier.seconds if earlier else {}))}
        total = spent.pop("this_call", 0.0)
        result = evaluate_tables(
            table,
            real,
            config,
            source={"path": str(run), "images": len(generated), "fingerprint": generated.fingerprint},
            reference=against.about,
            missing=against.missing,
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
        shown = gallery(generated, against.pictures, against.train_pictures, config.gallery, config.seed)
        write_samples(target / "samples.npz", shown)
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
    if loaded.config.reference is not None:
        real = open_reference(loaded.config.reference).real()
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
    train_pictures: Split | None
    """The train images, where they are at hand."""

    @property
    def about(self) -> dict[str, Any]:
        """`Result.reference`."""
        train, val = self.counts
        return {"name": self.name, "train": train, "val": val, "size": list(self.image_shape)}


def open_real(
    reference: Path | None,
    own: LoadedRun | None,
    config: EvaluationConfig,
    names: tuple[str, ...] | None = None,
    weights: Path | None = None,
    *,
    ranks: Ranks | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda text: None,
) -> Against:
    """The real side that a path stands for: a reference, or a run, which stands for its own; None is `own`.

    Raises ValueError for what cannot be opened, and for a reference that is not the one a run was trained against.
    """
    ranks = ranks or Ranks()
    if reference is not None and (reference / CONFIG).exists():
        own, reference = load_run(reference, device), None
    if own is not None:
        weights = weights or getattr(own.config.battery, "weights", None)
    if own is not None and reference is None:
        device, reference = own.device, own.config.reference
        if reference is None:
            return _own_data(own, config, names, weights, ranks, progress)
    assert reference is not None, "a reference or a run"
    opened = open_reference(reference, device)
    recorded = own.recorded.get("reference") if own is not None and own.config.reference == reference else None
    if own is not None and recorded is not None and recorded["address"] != opened.address:
        raise ValueError(f"{reference} is not the reference that {own.path} was trained against; build that again.")
    battery = opened.battery(names, weights)
    used = tuple(battery.encoders.keys())
    return Against(
        opened.real(used),
        battery,
        opened.name,
        (opened.plan["train"]["count"], opened.plan["val"]["count"]),
        opened.image_shape,
        tuple(name for name in opened.names if name not in used),
        opened.samples(),
        None,
    )


def _own_data(
    own: LoadedRun,
    config: EvaluationConfig,
    names: tuple[str, ...] | None,
    weights: Path | None,
    ranks: Ranks,
    progress: Callable[[str], None],
) -> Against:
    """A run's own images, embedded now by its own encoders."""
    dataset, device = own.dataset, own.device
    battery = ranks.main_first(lambda: build_battery(own.config, dataset, None, device, progress))
    battery, missing = battery.only(names)
    real = real_of(dataset, battery, config, device=device, weights=weights, ranks=ranks, progress=progress)
    counts, name = (len(dataset.train), len(dataset.val)), f"the data of {own.path.resolve().name}"
    return Against(real, battery, name, counts, dataset.image_shape, missing, dataset.val, dataset.train)


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


def _flat(value: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
