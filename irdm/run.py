"""A run directory: claim it, log to it, open it, judge it. What is in it stands in docs/design.md."""

from __future__ import annotations

import io
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from irdm import __version__
from irdm.checkpoint import load_latest, write_atomic
from irdm.data import Dataset
from irdm.encoders import Battery
from irdm.evaluate import evaluate
from irdm.images import image_grid, save_png
from irdm.judging import Judge
from irdm.ops.sampling import seed_for
from irdm.presets import RunConfig
from irdm.reference import Reference, build_reference
from irdm.references import open_reference


@dataclass
class LoadedRun:
    """A trained run: its configuration, and the averaged weights in evaluation mode, on `device`."""

    config: RunConfig
    generator: nn.Module
    device: str
    step: int
    num_classes: int
    recorded: dict
    """What reference.json says."""

    @cached_property
    def dataset(self) -> Dataset:
        """The run's data, opened when it is asked for: drawing images needs none. Raises ValueError when it changed."""
        dataset = self.config.data.build()
        recorded = self.recorded.get("data_fingerprint")
        if recorded is not None and recorded != dataset.fingerprint:
            raise ValueError(
                f"The run was trained on other data: fingerprint {recorded[:12]}, now {dataset.fingerprint[:12]}."
            )
        return dataset


def resolve_device(device: str) -> str:
    """`auto` is CUDA when there is one. Under torchrun each rank takes its own. Raises ValueError for absent CUDA."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("The device is 'cuda' but torch finds no CUDA device; use --device cpu or auto.")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    index = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def cache_dir() -> Path:
    """Where fitted batteries are kept: $IRDM_CACHE, else ~/.cache/irdm."""
    return Path(os.environ.get("IRDM_CACHE") or Path.home() / ".cache" / "irdm")


def build_generator(config: RunConfig, dataset: Dataset) -> nn.Module:
    """The network before training; the same weights for the same seed, wherever it is called."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("init", config.seed))
        return config.generator.build(dataset.image_shape, dataset.num_classes)


def restore_generator(
    config: RunConfig, image_shape: tuple[int, int, int], num_classes: int, weights: dict[str, Tensor], device: str
) -> nn.Module:
    """The network with weights of a checkpoint, on the device; the file that training started from is not needed.

    Only shapes are built before, so no weight is initialised or held twice.
    """
    with torch.device("meta"):
        generator = config.generator.build(image_shape, num_classes)
    generator = generator.to_empty(device=device)
    generator.load_state_dict(weights)
    return generator


def build_battery(config: RunConfig, dataset: Dataset, device: str, progress: Callable[[str], None]) -> Battery:
    """The encoders of a run on the device: fitted, loaded, or those of the run's reference.

    Raises ValueError when they are not, to the byte, those that made the reference.
    """
    if config.reference is None:
        return config.battery.fit(dataset, cache_dir=cache_dir(), progress=progress).to(device)
    judge, wanted = Judge(config.reference, device), config.battery.model_dump(mode="json")
    made = judge.folder.plan["battery"]
    if made["kind"] == "panel" == wanted["kind"]:  # some of its encoders will do
        held_out = {*judge.held_out}
        odd = {*wanted["held_in"]} - ({*judge.names} - held_out) | {*wanted["held_out"]} - held_out
        if not odd:
            battery = config.battery.fit(dataset, progress=progress).to(device)
            judge.check(dict(battery.encoders.items()), getattr(config.battery, "weights", None))
            return battery
    elif made == wanted:
        return judge.battery()
    differing = {key: value for key, value in made.items() if wanted.get(key) != value}
    raise ValueError(
        f"The reference {config.reference} was built with other encoders than this run asks for: "
        + "; ".join(f"battery.{key} is {wanted.get(key)}, there {value}" for key, value in differing.items())
        + ". Set these fields as they are there, or build a reference of the encoders you want."
    )


def build_training_reference(
    config: RunConfig, dataset: Dataset, battery: Battery, device: str, progress: Callable[[str], None]
) -> Reference:
    """The distances and floors of the encoders that train: fitted in memory, or those of the run's reference.

    A reference whose distance, rollout or joint-ness is another one is fitted anew from its stores.

    Raises ValueError when the reference is of images of another size or of other classes than the data.
    """
    encoders = {name: battery.encoders[name] for name in battery.held_in}
    if config.reference is None:
        options: dict[str, Any] = {"joint": config.joint, "rollout": config.rollout, "seed": config.seed}
        micro_batch = config.micro_batch or config.rollout
        return build_reference(config.distance, encoders, dataset, device=device, micro_batch=micro_batch, **options)
    reference = open_reference(config.reference, device)
    plan, (_, *sides) = reference.manifest["plan"], dataset.image_shape
    if sides != [plan["preprocessing"]["size"]] * 2 or plan["classes"] != list(dataset.class_names):
        raise ValueError(
            f"The reference {config.reference} is of {len(plan['classes'])} classes of images of "
            f"{plan['preprocessing']['size']} pixels a side, but {dataset.name} has {dataset.num_classes} classes of "
            f"{' x '.join(map(str, sides))}, or they have other names. Train on the images of the reference."
        )
    if plan["train"]["count"] != len(dataset.train):
        progress(f"the reference is of {plan['train']['count']} images; {dataset.name} has {len(dataset.train)}")
    asked = {"distance": config.distance.model_dump(mode="json"), "rollout": config.rollout}
    if asked != plan["training"] or config.joint:
        progress(f"{config.reference} holds another distance, rollout or joint-ness: fitting anew from its features")
    return reference.training(battery.held_in, config.distance, config.joint, rollout=config.rollout)


def describe_reference(config: RunConfig, reference: Reference, battery: Battery, dataset: Dataset) -> dict:
    """reference.json: what a reader of the run needs to know of its data, without the data."""
    prebuilt = Judge(config.reference).folder if config.reference else None
    return {
        "floors": reference.floors,
        "sizes": {name: len(getattr(dataset, name)) for name in ("train", "val", "test")},
        "held_in": list(battery.held_in),
        "held_out": list(battery.held_out),
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        # Hashing a prebuilt reference's images again would read all of them; the address stands for them.
        "data_fingerprint": None if prebuilt else dataset.fingerprint,
        "reference": {"name": prebuilt.name, "address": prebuilt.address} if prebuilt else None,
    }


def claim_run(out: Path, config: RunConfig) -> None:
    """Make `out` the directory of this configuration, or find that it already is.

    Raises ValueError when it holds another run or other files, OSError when it cannot be written.
    """
    path = out / "config.json"
    if path.exists():
        found = read_config(path)
        if found != config:
            ours, theirs = _flat(config.model_dump(mode="json")), _flat(found.model_dump(mode="json"))
            names = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
            lines = [f"  {name}: {theirs.get(name)} there, {ours.get(name)} now" for name in names]
            raise ValueError(
                f"{out} holds a run of another configuration:\n" + "\n".join(lines) + "\n"
                "Choose another --out, repeat that run's own command to resume it, or delete the folder."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not a run directory (no config.json in it); choose another --out.")
    write_atomic(path, config.model_dump_json(indent=1))


def read_config(path: Path) -> RunConfig:
    """The configuration in a JSON file. Raises ValueError naming what is wrong in it."""
    try:
        return RunConfig.model_validate_json(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not there: give a run directory made by `irdm train`.") from error
    except ValidationError as error:
        raise ValueError(f"{path} is not a valid configuration: {error}") from error


def load_run(run: Path) -> LoadedRun:
    """Open a trained run. Raises ValueError when it is no run or has no usable checkpoint."""
    config = read_config(run / "config.json")
    device = resolve_device(config.device)
    checkpoint, refused = load_latest(run / "checkpoints")
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint yet; run `irdm train` on it first.")
    for problem in refused:
        print(f"warning: {problem} Using the one before, of step {checkpoint.step}.")
    path = run / "reference.json"
    recorded = json.loads(path.read_text()) if path.exists() else {}
    if "image_shape" not in recorded:
        raise ValueError(f"{path} is missing or of an older irdm: repeat the run's own `irdm train` to write it again.")
    classes = len(recorded["class_names"])
    generator = restore_generator(config, tuple(recorded["image_shape"]), classes, checkpoint.tensors["ema"], device)
    return LoadedRun(config, generator.eval().requires_grad_(False), device, checkpoint.step, classes, recorded)


def evaluate_run(
    run: Path,
    *,
    training: dict | None = None,
    seconds: dict[str, float] | None = None,
    command: str | None = None,
    progress: Callable[[str], None] = print,
) -> dict:
    """Judge the averaged weights of a run; write result.json, samples/ and report.html. Returns the result.

    `training`, `seconds` and `command` come from the trainer; without them those of the earlier result.json are kept.
    """
    from irdm.report import write_report

    clock = time.monotonic()
    path = run / "result.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    loaded = load_run(run)
    config = loaded.config
    if config.evaluation is None:
        raise ValueError(
            f"{run} was trained with evaluation null, so nothing says how to judge it; edit its config.json."
        )
    battery = build_battery(config, loaded.dataset, loaded.device, progress)
    evaluation = evaluate(
        loaded.generator, battery, loaded.dataset, config.evaluation, device=loaded.device, progress=progress
    )
    spent = time.monotonic() - clock
    seconds = dict(seconds or earlier.get("seconds", {}))
    seconds["evaluate"] = spent
    total = seconds.pop("this_call", None)
    parts = sum(seconds.get(name, 0.0) for name in ("encoders", "reference", "train", "evaluate"))
    seconds["total"] = max(parts, (total or 0.0) + spent)
    keep = ("steps", "skipped_steps", "images_per_second", "core_seconds", "ranks", "alarms")
    result = evaluation.result | {"seconds": seconds, "step": loaded.step}
    result |= training or {key: earlier[key] for key in keep if key in earlier}
    result |= {
        "seeds": {
            "run": config.seed,
            "battery": config.battery.model_dump().get("seed"),
            "evaluation": config.evaluation.seed,
        },
        "versions": {
            "irdm": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "hardware": _hardware(loaded.device),
        "command": command or earlier.get("command", f"irdm eval {run}"),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **evaluation.arrays)  # type: ignore[arg-type]
    write_atomic(run / "samples" / "evaluation.npz", buffer.getvalue())
    grid = torch.from_numpy(evaluation.arrays["generated"]).float() / 255
    columns = int(np.unique(evaluation.arrays["generated_labels"], return_counts=True)[1].max())
    save_png(run / "samples" / "final.png", image_grid(grid, columns))
    write_atomic(path, json.dumps(result, indent=1))
    write_report(run)
    return result


class MetricsLog:
    """metrics.jsonl: one JSON object a line. Lines after the resumed step are dropped first, since they come again."""

    def __init__(self, path: Path, step: int, write: bool):
        self.path, self.enabled = path, write
        if write and path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_atomic(path, "".join(line + "\n" for line in kept))

    def write(self, line: dict) -> None:
        """Append one object; NaN and infinity are written as null, which JSON knows."""
        if self.enabled:
            with open(self.path, "a") as file:
                file.write(json.dumps(_jsonable(line)) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut short by a kill


def _jsonable(value):
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _flat(value: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
