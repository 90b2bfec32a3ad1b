"""The configuration of a run, and the presets: functions that return one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from irdm.config import Config, free
from irdm.controller import ControllerConfig
from irdm.data import AnyData, CaptionedConfig, DigitsConfig, IdxConfig, ImagesConfig, WorldConfig
from irdm.data.idx import CLOTHES, DEBIAN
from irdm.distances import AnyDistance, Joint, NystromMMDConfig
from irdm.encoders import (
    FITTED,
    AnyBattery,
    FittedBatteryConfig,
    LiteLocalBatteryConfig,
    LocalBatteryConfig,
    PanelBatteryConfig,
)
from irdm.encoders.local import CAPTIONS, ENCODERS, HELD_IN
from irdm.encoders.panel import GROUPS, METRICS_ONLY, expanded
from irdm.fields import UsageError, nearest, validate
from irdm.generators import PMF_FAMILIES, AnyGenerator, ConvConfig, KleinConfig, MLPConfig
from irdm.metrics import EvaluationConfig
from irdm.tracker import Tracker

SMOKE_IMAGES = 120
LR_ROLLOUT = 5120  # the rollout at which `lr` is quoted; the rate scales with the square root
HELD_OUT = {True: 1 / 2, False: 1 / 3}  # share of some images that becomes val, of a reference (not) to judge alone


class RunConfig(Config):
    """Everything that decides the numbers of a run."""

    preset: str = free("")
    """Name of the preset this came from."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the initial weights, the noise, the conditions, the reference and the floors."""
    device: Literal["auto", "cpu", "cuda"] = free("auto")
    """Where to compute; auto takes CUDA when there is one."""

    data: AnyData
    """Real images."""
    battery: AnyBattery = LocalBatteryConfig()
    """Encoders that compare generated with real images."""
    generator: AnyGenerator = MLPConfig()
    """The one-step network."""
    distance: AnyDistance = NystromMMDConfig()
    """How distributions of features are compared."""
    controller: ControllerConfig = ControllerConfig()
    """How the encoders are weighted."""
    evaluation: EvaluationConfig | None = EvaluationConfig()
    """How the result is judged; none trains without looking: no pictures, checks, result or report."""

    reference: Path | None = free(None)
    """A directory made by `irdm reference build`, in place of encoding all real images and fitting at each start."""

    joint: Joint = True
    """Encoders under which images are matched together with their conditions: all (true), none (false), or those named;
    under the others only the marginal distribution of images is."""
    self_normalise: bool = True
    """Divide each encoder's distance by its own value."""
    rollout: int = Field(default=2048, ge=2, le=2**24)
    """Fresh images a step, compared all together."""
    micro_batch: int | None = free(None, ge=1)
    """Images at once; unset means the whole rollout. Changes memory and time, not the gradient."""
    graph_memory_gib: float | None = free(None, ge=0, le=2**20)
    """Memory for keeping the graphs of micro-batches, so that those need no second forward; unset takes half of what is
    free once the first micro-batch is there, 0 keeps none."""
    shard: bool = free(False)
    """Under torchrun, divide weights, gradients, moments and average over the processes (FSDP2), each of which has a
    part; no graph is kept then. Resumes, and is resumed by, a run that is not divided."""
    steps: int = Field(default=1000, ge=1, le=2**40)
    """Optimizer steps."""
    lr: float = Field(default=1e-3, gt=0, le=1e36)
    """Peak learning rate at a rollout of 5120; scaled by sqrt(rollout / 5120)."""
    warmup: int = Field(default=0, ge=0, le=2**40)
    """Steps over which the learning rate rises from 0."""
    final_lr: float = Field(default=1.0, ge=0, le=1)
    """Learning rate at the last step as a share of the peak, reached along a cosine; 1 is constant."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first-moment decay."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's second-moment decay."""
    weight_decay: float = Field(default=0.0, ge=0, le=1e6)
    """AdamW's weight decay."""
    clip_norm: float = Field(default=1280.0, gt=0, le=1e30)
    """Largest norm of the true gradient of the loss, whatever the micro-batch or number of ranks."""
    ema_decay: float | None = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are the ones that sample and are judged; none takes the last weights."""

    log_every: int = free(10, ge=1)
    """Steps between lines of metrics.jsonl."""
    check_every: int = free(250, ge=1)
    """Steps between sample grids with a quick held-out check."""
    checkpoint_every: int = free(250, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = free(2, ge=1)
    """Newest checkpoints to keep; the older ones are deleted."""
    tracker: Tracker | None = free(None)
    """Where the lines of metrics.jsonl go as well: `tensorboard` (RUN/tensorboard) or `wandb`; each is an extra."""
    max_skipped: int = free(10, ge=1)
    """Consecutive steps with a non-finite loss or gradient that stop the run; fewer are skipped and counted."""

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.micro_batch is not None and self.micro_batch > self.rollout:
            raise ValueError(
                f"micro_batch is {self.micro_batch} but the rollout has only {self.rollout} images; lower micro_batch "
                "to the rollout or below (or leave it unset), or raise rollout."
            )
        trained = getattr(self.battery, "held_in", ())
        if not isinstance(self.joint, bool) and (unknown := [name for name in self.joint if name not in trained]):
            raise ValueError(
                f"joint names {', '.join(unknown)}, but the encoders that train are {', '.join(trained) or 'unnamed'}; "
                "name some of these, or set joint to true or false."
            )
        if self.shard and self.graph_memory_gib:
            raise ValueError(
                f"graph_memory_gib is {self.graph_memory_gib:g}, but divided weights (shard) are whole only while a "
                "block computes, so no graph is kept; leave it unset."
            )
        return self

    @property
    def graph_bytes(self) -> int | None:
        """Memory for kept graphs; None: half of what is free."""
        gib = 0.0 if self.shard else self.graph_memory_gib
        return None if gib is None else int(gib * 2**30)

    def learning_rate(self, step: int) -> float:
        """lr * sqrt(rollout / 5120), after a linear warm-up along a cosine to final_lr times that; steps from 0."""
        peak = self.lr * math.sqrt(self.rollout / LR_ROLLOUT)
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        part = (step - self.warmup) / max(1, self.steps - self.warmup)
        return peak * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * part)))


def digits() -> RunConfig:
    """Handwritten digits (8x8, ships with scikit-learn) from nothing, in about a minute on two CPU cores."""
    often = {"check_every": 200, "checkpoint_every": 200}
    return small_images("digits", DigitsConfig()).model_copy(update={"steps": 800} | often)


def digits_smoke() -> RunConfig:
    """A perceptron on digits for seconds, to see every part work; its samples are poor."""
    return RunConfig(
        preset="digits-smoke",
        data=DigitsConfig(),
        battery=LocalBatteryConfig(steps=20),
        generator=MLPConfig(width=64, depth=2),
        rollout=128,
        steps=20,
        log_every=5,
        check_every=10,
        checkpoint_every=10,
        evaluation=EvaluationConfig(draws=2, directions=64, rff_features=256, resamples=8),
    )


def fashion() -> RunConfig:
    """Clothes: the 70,000 photographs of Fashion-MNIST (28x28, grey). `irdm check fashion` says where to get them."""
    return small_images("fashion", IdxConfig(path=DEBIAN, names=CLOTHES))


def folder() -> RunConfig:
    """Your own images, up to 128x128: give --data.path, a folder, .zip, .tar or .npz; --data.size 32 cuts squares."""
    run = small_images("folder", ImagesConfig.model_construct(kind="images"))
    return run.model_copy(update={"generator": ConvConfig(style_rate=0.25)})  # at 1 drawings come to saturate


def small_images(preset: str, data: AnyData) -> RunConfig:
    """The recipe for images of up to 128 pixels a side, grey or in colour, with or without classes."""
    return RunConfig.model_construct(
        preset=preset,
        data=data,
        battery=LocalBatteryConfig(held_in=(*HELD_IN, "parts", "gram")),
        generator=ConvConfig(),
        distance=NystromMMDConfig(
            bandwidths=(0.25, 0.5, 1.0, 2.0),
            condition_bandwidth=0.6,
            landmarks=2048,  # 4096 are as good on average, and slower to fit and in each step
            kmeans_rows=20_000,  # of 60,000 in half the time
        ),
        controller=ControllerConfig(kind="uniform"),
        evaluation=EvaluationConfig(rows=2500, table_rows=20_000, manifold_rows=5000),  # with 50,000, half of training
        rollout=512,
        steps=2000,
        lr=0.019,
        warmup=50,  # after 10 a class was lost once: all white, where a sigmoid has no gradient
        final_lr=0.01,
        ema_decay=0.99,
    )


def imagenet() -> RunConfig:
    """ImageNet at 256x256 from released pMF-H weights: 4000 steps of 5120 images. Give --data.train and --data.val."""
    return RunConfig(
        preset="imagenet",
        data=ImagesConfig(train=Path("imagenet/train"), val=Path("imagenet/val"), size=256),
        battery=PanelBatteryConfig(),
        generator=PMF_FAMILIES["H"].model_copy(
            update={"weights": Path("pmf-h.pth"), "precision": "bfloat16", "gradient_checkpointing": True}
        ),
        distance=NystromMMDConfig(),
        controller=ControllerConfig(budget=10),
        evaluation=EvaluationConfig(draws=3, quick_rows=1024, micro_batch=32),
        joint=False,
        rollout=5120,
        micro_batch=32,  # with the panel about 57 GiB: one card of 80
        graph_memory_gib=0,
        steps=4000,
        lr=1.6e-6,
        clip_norm=1280,
        check_every=100,
        checkpoint_every=100,
    )


def klein() -> RunConfig:
    """FLUX.2 [klein] 4B from four steps to one, images with captions. Give --data.path and --generator.model."""
    return RunConfig(
        preset="klein",
        data=CaptionedConfig(path=(Path("captioned"),), size=512),
        battery=PanelBatteryConfig(),
        generator=KleinConfig(model=Path("FLUX.2-klein-4B"), precision="bfloat16", gradient_checkpointing=True),
        distance=NystromMMDConfig(landmarks=8192, scale=0.25),
        controller=ControllerConfig(kind="uniform"),
        evaluation=EvaluationConfig(draws=1, quick_rows=1024, micro_batch=8),
        rollout=10240,
        micro_batch=8,
        graph_memory_gib=0,
        steps=300,
        lr=2e-6,  # 2.83e-6 at this rollout
        clip_norm=5120,
        ema_decay=None,
        check_every=20,
        checkpoint_every=20,
        keep_checkpoints=15,
    )


def klein_tiny() -> RunConfig:
    """The same class with random weights at 32x32, to see every part work on a CPU. Give --data.path."""
    return RunConfig(
        preset="klein-tiny",
        data=CaptionedConfig(path=(Path("captioned"),), size=32, embedder="minilm"),
        battery=LocalBatteryConfig(steps=50),
        generator=KleinConfig(length=96),  # a token a byte
        distance=NystromMMDConfig(landmarks=256, bandwidths=(0.25, 0.5, 1.0, 2.0)),
        controller=ControllerConfig(kind="uniform"),
        evaluation=EvaluationConfig(draws=1, directions=64, rff_features=256, resamples=8, ladder=0),
        rollout=64,
        steps=20,
        lr=1e-2,
        ema_decay=None,
        log_every=5,
        check_every=10,
        checkpoint_every=10,
    )


def world() -> RunConfig:
    """The captioned world: its four-step teacher, which ships with irdm, to one step. Shapes from captions, no file."""
    return RunConfig(
        preset="world",
        data=WorldConfig(),
        battery=LocalBatteryConfig(held_in=(*HELD_IN, "parts", "gram", "palette", "mixture", *CAPTIONS), steps=1000),
        generator=KleinConfig(model=Path("world"), length=12),
        distance=NystromMMDConfig(
            landmarks=1024, kmeans_iterations=5, bandwidths=(0.5, 1.0, 2.0), condition_bandwidth=2.0, residual=True
        ),
        evaluation=EvaluationConfig(
            rows=2500, table_rows=10_000, manifold_rows=2000, draws=1, resamples=8, quick_rows=512, ladder=0
        ),
        joint=CAPTIONS,
        rollout=256,
        steps=800,
        lr=0.015,
        warmup=10,
        final_lr=0.01,
        ema_decay=0.99,
        check_every=400,
        checkpoint_every=50,
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "digits": digits,
    "digits-smoke": digits_smoke,
    "fashion": fashion,
    "folder": folder,
    "imagenet": imagenet,
    "klein": klein,
    "klein-tiny": klein_tiny,
    "world": world,
}


def run_of_images(
    train: Path,
    val: Path | None = None,
    *,
    names: tuple[str, ...] = (),
    size: int | None = None,
    weights: Path | None = None,
    judge_only: bool = False,
) -> RunConfig:
    """The run whose real side some images are; without `val` a third of them is held out, half when they only judge.

    `names` are the encoders: none or `local`, `lite` or `lite+local` for those fitted on the images, `panel` or
    `literature` for pretrained ones, or some of either kind. Raises UsageError for other names.
    """
    pretrained = PanelBatteryConfig()
    pretrained = PanelBatteryConfig(held_out=(*pretrained.held_out, *METRICS_ONLY))
    fitted = [config() for config in FITTED.values()]
    groups = GROUPS | {config.kind: config.names for config in fitted}
    names = expanded(names or ("local",), groups)
    if not set(names) - set(pretrained.names):
        battery: AnyBattery = pretrained.some(names, weights)
    elif unknown := [name for name in names if name not in ENCODERS]:
        if unknown[0] in pretrained.names:
            raise UsageError(
                f"--panel has '{unknown[0]}' beside encoders of local or lite; build a reference of each kind"
            )
        known = [*groups, *ENCODERS, *pretrained.names]
        raise UsageError(f"--panel has no encoder '{unknown[0]}'{nearest(unknown[0], known)}")
    else:
        judges = LiteLocalBatteryConfig().held_out
        held_in = tuple(name for name in ENCODERS if name in names and name not in judges)
        some = LocalBatteryConfig(held_in=held_in, held_out=tuple(name for name in judges if name in names))
        battery = next((config for config in fitted if set(config.names) == set(names)), some)
    places: dict[str, Any] = {"train": train, "val": val}
    if val is None:
        places = {"path": train, "val_fraction": HELD_OUT[judge_only], "drop_shared": True}
    colour = {"channels": 3} if battery.kind == "panel" else {}
    data = validate(ImagesConfig, {**places, **colour, "size": size}, "--data.")
    return RunConfig(data=data, battery=battery, rollout=LR_ROLLOUT, joint=False)


def limited(config: RunConfig, images: int) -> RunConfig:
    """The same run cut down to see every part of it work: some images, a rollout of as many, two steps of everything.

    Raises ValueError for fewer than 120 images, of which a third is held out.
    """
    if images < SMOKE_IMAGES:
        raise ValueError(f"limit is {images}; the shortest run that can be judged has {SMOKE_IMAGES} images.")
    rollout = min(config.rollout, images)
    update: dict[str, Any] = {"rollout": rollout, "micro_batch": min(config.micro_batch or rollout, rollout)}
    update |= {"preset": f"{config.preset}-limit-{images}", "steps": min(config.steps, 2), "log_every": 1}
    update |= {"check_every": 1, "checkpoint_every": 1}
    if "limit" in type(config.data).model_fields:
        update["data"] = config.data.model_copy(update={"limit": images})
    if isinstance(config.battery, FittedBatteryConfig):
        update["battery"] = config.battery.model_copy(update={"steps": min(config.battery.steps, 2)})
    if config.evaluation:
        least = {"directions": 64, "rff_features": 256, "resamples": 8}
        cut = {name: min(most, getattr(config.evaluation, name)) for name, most in least.items()}
        cut |= {"rows": images, "quick_rows": images, "draws": 1}
        update["evaluation"] = config.evaluation.model_copy(update=cut)
    return RunConfig.model_validate(config.model_copy(update=update).model_dump())
