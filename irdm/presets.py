"""The configuration of a run, and the presets: functions that return one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from irdm.config import Config
from irdm.controller import ControllerConfig
from irdm.data import AnyData, ArrayConfig, DigitsConfig
from irdm.distances import AnyDistance, NystromMMDConfig
from irdm.encoders import AnyBattery, LocalBatteryConfig
from irdm.generators import AnyGenerator, MLPConfig
from irdm.metrics import EvaluationConfig


class RunConfig(Config):
    """Everything that decides the numbers of a run."""

    preset: str
    """Name of the preset this came from."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights, the noise, the labels, the references and the floors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
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

    joint: bool = True
    """Match images together with their labels; otherwise only the marginal distribution of images."""
    self_normalise: bool = True
    """Divide each encoder's distance by its own value."""
    rollout: int = Field(default=2048, ge=2)
    """Fresh images a step, compared all together."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Images at once; unset means the whole rollout. Changes memory and time, not the gradient."""
    graph_memory_gib: float = Field(default=2.0, ge=0)
    """Memory for keeping the graphs of micro-batches, so that those need no second forward."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate at a rollout of 5120; scaled by sqrt(rollout / 5120)."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    final_lr: float = Field(default=1.0, ge=0, le=1)
    """Learning rate at the last step as a share of the peak, reached along a cosine; 1 is constant."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first-moment decay."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's second-moment decay."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    clip_norm: float = Field(default=1280.0, gt=0)
    """Largest norm of the true gradient of the loss, whatever the micro-batch or number of ranks."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are the ones that sample and are judged."""

    log_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    check_every: int = Field(default=250, ge=1)
    """Steps between sample grids with a quick held-out check."""
    checkpoint_every: int = Field(default=250, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints to keep; the older ones are deleted."""
    max_skipped: int = Field(default=10, ge=1)
    """Consecutive steps with a non-finite loss or gradient that stop the run; fewer are skipped and counted."""

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.micro_batch is not None and self.micro_batch > self.rollout:
            raise ValueError(
                f"micro_batch is {self.micro_batch} but the rollout has only {self.rollout} images; lower micro_batch "
                "to the rollout or below (or leave it unset), or raise rollout."
            )
        return self


def digits() -> RunConfig:
    """Handwritten digits (8x8, ships with scikit-learn) from nothing, in about three minutes on two CPU cores."""
    return RunConfig(
        preset="digits",
        data=DigitsConfig(),
        distance=NystromMMDConfig(bandwidths=(0.25, 0.5, 1.0), condition_bandwidth=0.3),
        rollout=1024,
        steps=400,
        lr=9e-3,
        warmup=20,
        final_lr=0.01,
        ema_decay=0.99,
        check_every=100,
        checkpoint_every=100,
    )


def digits_smoke() -> RunConfig:
    """The digits run cut down to seconds, to see every part work; its samples are poor."""
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
        evaluation=EvaluationConfig(replicates=2, directions=64, rff_features=256, resamples=8),
    )


def array() -> RunConfig:
    """Your own small images, from an .npz or .npy file: give --data.path FILE."""
    return digits().model_copy(update={"preset": "array", "data": ArrayConfig.model_construct(kind="array")})


PRESETS: dict[str, Callable[[], RunConfig]] = {"digits": digits, "digits-smoke": digits_smoke, "array": array}
