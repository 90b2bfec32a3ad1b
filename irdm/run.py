"""A run directory: claim it, open it, judge it. What is in it stands in docs/design.md."""

from __future__ import annotations

import io
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from irdm import __version__
from irdm.checkpoint import load_latest, write_atomic
from irdm.data import Dataset
from irdm.encoders import Battery
from irdm.evaluate import evaluate
from irdm.images import image_grid, save_png
from irdm.ops.sampling import seed_for
from irdm.presets import RunConfig


@dataclass(frozen=True)
class LoadedRun:
    """A trained run: its configuration, its data, and the averaged weights in evaluation mode, on `device`."""

    config: RunConfig
    dataset: Dataset
    generator: nn.Module
    device: str
    step: int


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
    """The untrained network; the same weights for the same seed, wherever it is called."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("init", config.seed))
        return config.generator.build(dataset.image_shape, dataset.num_classes)


def build_battery(config: RunConfig, dataset: Dataset, device: str, progress: Callable[[str], None]) -> Battery:
    """The encoders of a run on the device, fitted or read from the cache."""
    return config.battery.fit(dataset, cache_dir=cache_dir(), progress=progress).to(device)


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
    """Open a trained run. Raises ValueError when it is no run, has no usable checkpoint, or its data changed."""
    config = read_config(run / "config.json")
    device = resolve_device(config.device)
    checkpoint, refused = load_latest(run / "checkpoints")
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint yet; run `irdm train` on it first.")
    for problem in refused:
        print(f"warning: {problem} Using the one before, of step {checkpoint.step}.")
    dataset = config.data.build()
    reference = run / "reference.json"
    if reference.exists():
        recorded = json.loads(reference.read_text())["data_fingerprint"]
        if recorded != dataset.fingerprint:
            raise ValueError(
                f"{run} was trained on other data: fingerprint {recorded[:12]}, now {dataset.fingerprint[:12]}."
            )
    generator = build_generator(config, dataset)
    generator.load_state_dict(checkpoint.tensors["ema"])
    return LoadedRun(config, dataset, generator.to(device).eval().requires_grad_(False), device, checkpoint.step)


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
        raise ValueError(f"{run} was trained with evaluation null, so nothing says how to judge it; edit its config.json.")
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
    save_png(run / "samples" / "final.png", image_grid(grid, config.evaluation.gallery_per_class))
    write_atomic(path, json.dumps(result, indent=1))
    write_report(run)
    return result


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _flat(value: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
