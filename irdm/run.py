"""A run directory: claim it, record what it stands on, open it. What is in it stands in docs/design.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from irdm.build import RunReference, build_generator, resolve_device
from irdm.checkpoint import load_latest, restore
from irdm.conditions import Conditions, ConditionSpec, Spec
from irdm.data import Dataset
from irdm.data.base import Shape
from irdm.encoders import Battery
from irdm.fields import UsageError, validate
from irdm.files import cache_dir, hash_of, read_manifest, visible, write_manifest
from irdm.generate import Drawn
from irdm.generators import Generator
from irdm.presets import RunConfig
from irdm.reference import Reference

__all__ = ["LoadedRun", "cache_dir", "claim_run", "load_run", "read_config", "resolve_device"]

CONFIG, RECORD, RESULT = "config.json", "reference.json", "result.json"
AGAIN = "Repeat the run's own `irdm train` to write it again."
RECORDED = ("data_fingerprint", "reference", "spec", "image_shape", "encoders")
SPECS: TypeAdapter[Spec] = TypeAdapter(ConditionSpec)


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
    config: RunConfig,
    dataset: Dataset,
    battery: Battery,
    reference: Reference,
    prebuilt: RunReference,
    generator: Generator,
) -> dict[str, Any]:
    """reference.json: what a run stands on, and what a reader needs to know of its data without the data."""
    return {
        "floors": reference.floors,
        "sizes": {"train": len(dataset.train), "val": len(dataset.val)},
        "held_in": list(battery.held_in),
        "held_out": list(battery.held_out),
        **({"overlap": dataset.overlap} if dataset.overlap else {}),
        **_stands_on(dataset, prebuilt, generator),
    }


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write reference.json."""
    write_manifest(out / RECORD, record)


def check_record(out: Path, dataset: Dataset, prebuilt: RunReference, generator: Generator) -> None:
    """A run goes on with the data, the reference and the frozen weights that it began with.

    Raises ValueError naming what changed.
    """
    if not (out / RECORD).exists():
        return
    recorded, now = read_record(out), _stands_on(dataset, prebuilt, generator)
    changed = [name for name in now if recorded.get(name) != now[name]]
    if changed:
        what = {
            "data_fingerprint": "the images or their conditions are other ones",
            "reference": "the reference is another one",
            "spec": "the conditions have other names, or another text encoder",
            "image_shape": "the images have another shape",
            "built_on": "the frozen weights of the generator are other ones",
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


def _stands_on(dataset: Dataset, prebuilt: RunReference, generator: Generator) -> dict[str, Any]:
    return {
        # Hashing a prebuilt reference's images again would read all of them; the address stands for them.
        "data_fingerprint": None if prebuilt and prebuilt.has_images else dataset.fingerprint,
        "reference": {"name": prebuilt.name, "address": prebuilt.address} if prebuilt else None,
        "spec": dataset.train.conditions.spec.model_dump(mode="json"),
        "image_shape": list(dataset.image_shape),
        "built_on": generator.built_on or None,
    }


@dataclass
class LoadedRun:
    """A trained run: its configuration, and the averaged weights in evaluation mode, on `device`."""

    path: Path
    config: RunConfig
    generator: Generator
    device: str
    step: int
    spec: Spec
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

    def teacher(self, steps: int) -> LoadedRun:
        """The model that the run began from, in so many steps, in its place. Raises ValueError when there is none."""
        weights = hash_of([self.generator.built_on, self.config.generator.model_dump(mode="json"), steps])
        return replace(self, generator=self.generator.teacher(steps), step=0, weights=weights)

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
    known = record.get("built_on") or {}
    if odd := [part for part, found in generator.built_on.items() if known.get(part, found) != found]:
        place = getattr(config.generator, "model", "its folder")
        raise ValueError(
            f"{run} was trained on another {' and '.join(odd)} than {place} has; what was trained is worth nothing "
            "without. Bring back the files that it began with."
        )
    restore(generator.trained(), checkpoint.tensors["ema"], run)
    generator = generator.to(device).eval().requires_grad_(False)
    return LoadedRun(run, config, generator, device, checkpoint.step, spec, shape, record, checkpoint.hashes["ema"])


def _flat(value: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
    return flat
