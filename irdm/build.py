"""The parts of a run from its configuration: generator, battery, and the distances and floors it is trained with."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from irdm.conditions import Spec
from irdm.data import Dataset
from irdm.data.base import Shape
from irdm.data.checks import check_beside, check_real
from irdm.data.image_source import ImageSource
from irdm.distributed import Ranks
from irdm.encoders import Battery
from irdm.evaluation import embed
from irdm.files import cache_dir, hash_of
from irdm.generators import Generator
from irdm.ops.sampling import seed_for
from irdm.presets import RunConfig
from irdm.progress import Say
from irdm.reference import (
    OpenReference,
    Reference,
    ReferenceConfig,
    build_reference,
    fit_reference,
    open_reference,
    plan_of,
)
from irdm.reference.fit import MIN_FLOOR_ROWS, floor_is_known, floors_or_error
from irdm.reference.imported import ImportedReference, is_imported
from irdm.store import Engine, plain

RunReference = OpenReference | ImportedReference | None
"""What a run trains against: made of images, imported, or fitted at its start."""


def resolve_device(device: str) -> str:
    """`auto` is CUDA when there is one. Under torchrun each rank takes its own. Raises ValueError for absent CUDA."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("The device is 'cuda' but torch finds no CUDA device; use --device cpu or auto.")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    index = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def build_generator(config: RunConfig, image_shape: Shape, spec: Spec, *, restored: bool = False) -> Generator:
    """The network before training; the same weights for the same seed, wherever it is called.

    One whose trained parameters are `restored` next does not need the file that training started from.
    """
    generator = config.generator
    if restored and "weights" in type(generator).model_fields:
        generator = generator.model_copy(update={"weights": None, "weights_sha256": None})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("init", config.seed))
        return generator.build(image_shape, spec)


def place_generator(
    config: RunConfig, image_shape: Shape, spec: Spec, device: str, ranks: Ranks, *, restored: bool
) -> Generator:
    """`build_generator` on the device, divided if the run says so.

    One rank of a machine after another, so that its main memory holds one whole network at a time.
    """

    def place() -> Generator:
        generator = build_generator(config, image_shape, spec, restored=restored)
        if config.shard:  # on its way to the device, which never holds the whole
            ranks.divide(generator.divisible(), config.generator.kind, generator.rounded)
        return generator.to(device)

    if config.shard:
        ranks.meet()
    return ranks.in_turn(place)


def build_optimizer(config: RunConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW at the peak learning rate; on CUDA its fused update, which needs no temporary copy of the weights."""
    chosen = list(parameters)
    fused = chosen[0].is_cuda
    options = {"betas": (config.beta1, config.beta2), "weight_decay": config.weight_decay}
    return torch.optim.AdamW(chosen, lr=config.lr, fused=fused, foreach=not fused, **options)


def build_battery(config: RunConfig, dataset: Dataset, reference: RunReference, device: str, progress: Say) -> Battery:
    """The encoders of a run on the device: fitted, loaded, or those of its reference.

    Raises ValueError when they are not, to the byte, those that made the reference.
    """
    if reference is None or isinstance(reference, ImportedReference):
        return config.battery.fit(dataset, cache_dir=cache_dir(), progress=progress).to(device)
    wanted, made = config.battery.identity(), reference.plan["battery"]
    if made["kind"] == "panel" == wanted["kind"]:  # some of the reference's encoders will do
        asked: tuple[str, ...] = config.battery.held_in + config.battery.held_out  # type: ignore[union-attr]
        return reference.battery(asked, config.battery.weights, config.battery.offload)  # type: ignore[union-attr]
    if made != wanted:
        names = sorted(key for key in {**made, **wanted} if made.get(key) != wanted.get(key))
        listed = "; ".join(
            f"battery.{key} is {wanted.get(key, 'the default')}, there {made.get(key, 'the default')}" for key in names
        )
        raise ValueError(
            f"The reference {reference.path} was built with other encoders than this run asks for: {listed}. Set these "
            "fields as they are there, or build a reference of the encoders you want."
        )
    return reference.battery()


def build_training(
    config: RunConfig,
    dataset: Dataset,
    battery: Battery,
    reference: RunReference,
    device: str,
    ranks: Ranks,
    progress: Say,
) -> Reference:
    """The distances and floors of the encoders that train: fitted in memory, or those of the run's reference."""
    options: Any = {"joint": config.joint, "rollout": config.rollout, "seed": config.seed, "progress": progress}
    if reference is not None:
        return reference.training(battery.held_in, config.distance, **options)
    encoders = {name: battery.encoders[name] for name in battery.held_in}
    sides = [
        embed(
            split,
            encoders,
            micro_batch=config.micro_batch or config.rollout,
            device=device,
            ranks=ranks,
            progress=progress,
        )
        for split in (dataset.train, dataset.val)
    ]
    conditions = (dataset.train.conditions, dataset.val.conditions)
    train, val = (side.features for side in sides)
    return fit_reference(config.distance, train, val, conditions, device=device, ranks=ranks, **options)


def reference_of(
    run: RunConfig,
    name: str,
    out: Path | None,
    *,
    judge_only: bool,
    micro_batch: int,
    device: str,
    ranks: Ranks,
    command: str | None,
    progress: Say,
    engine: Engine = plain,
    judged: ImageSource | None = None,
) -> OpenReference:
    """The reference of the real side of a run in the directory `out`; None is irdm's cache, by what decides it.

    Images are checked before any encoder is fitted (`irdm.data.checks`), and beside them those that will be `judged`.
    Raises as `build_reference` does.
    """
    dataset = ranks.main_first(run.data.build)
    with ranks.together():
        if (place := getattr(run.data, "path", None)) is not None and run.data.kind == "images":
            progress(
                f"{place}: {len(dataset.train)} images are train and {len(dataset.val)} others are held out as val, at "
                f"random with every class in proportion{', without repeats of train' * run.data.drop_shared}"
            )
        if ranks.is_main:
            check_real(dataset, progress=progress)
            for note in check_beside(judged, dataset) if judged else ():
                progress(note)
    battery = ranks.main_first(lambda: run.battery.fit(dataset, cache_dir=cache_dir(), progress=progress))
    asked = ReferenceConfig(
        seed=run.seed, rollout=run.rollout, distance=run.distance, joint=run.joint, judge_only=judge_only
    )
    weights = getattr(run.battery, "weights", None)
    if out is None:
        out = cache_dir() / "references" / hash_of(plan_of(dataset, battery, asked, run.battery, weights))[:24]
    return build_reference(
        name,
        dataset,
        battery,
        out,
        asked,
        battery_config=run.battery,
        weights=weights,
        micro_batch=micro_batch,
        device=device,
        ranks=ranks,
        command=command,
        progress=progress,
        engine=engine,
    )


def check_floors(config: RunConfig, held_out: int) -> None:
    """Raises ValueError when the controller needs floors that so many held-out images cannot tell."""
    if held_out < MIN_FLOOR_ROWS:
        raise ValueError(
            f"Only {held_out} images are held out; what real images score cannot be told from fewer than "
            f"{MIN_FLOOR_ROWS}. Give more images, or raise --data.val-fraction."
        )
    gated = config.controller.kind == "lagrangian"
    if gated and not floor_is_known(config.distance, rollout=config.rollout, held_out=held_out):
        floors_or_error({"every encoder": None}, held_out=held_out, rollout=config.rollout)


def open_run_reference(config: RunConfig, dataset: Dataset, device: str) -> RunReference:
    """The reference that the run names. Raises ValueError when it is of images of another shape or other conditions."""
    if config.reference is None:
        return None
    spec = dataset.train.conditions.spec
    if is_imported(config.reference):
        imported = ImportedReference(config.reference, device)
        imported.check(spec)
        return imported
    reference = open_reference(config.reference, device)
    if reference.image_shape != dataset.image_shape or reference.spec != spec:
        raise ValueError(
            f"The reference {config.reference} is of images {list(reference.image_shape)} with "
            f"{reference.spec.says}, but {dataset.name} has {list(dataset.image_shape)} with {spec.says}, or "
            "these are others. Train on the images of the reference."
        )
    return reference
