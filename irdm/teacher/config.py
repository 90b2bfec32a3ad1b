"""How the teacher of the world is trained."""

from __future__ import annotations

from pydantic import Field

from irdm.config import Config, free


class TrainingConfig(Config):
    """A training by AdamW, for a time by the clock."""

    minutes: float = Field(default=50.0, gt=0, le=1e5)
    """Training time by the clock, over which the learning rate falls; a machine that is busy has fewer steps."""
    batch: int = Field(default=32, ge=6, le=2**16)
    """Scenes a step, the six categories in turn."""
    lr: float = Field(default=3e-3, gt=0, le=1)
    """Peak learning rate of AdamW."""
    warmup: int = Field(default=50, ge=0, le=2**40)
    """Steps over which the learning rate rises from 0."""
    falling: float = Field(default=0.5, gt=0, le=1)
    """Share of the time, at its end, in which the learning rate falls to 0."""
    weight_decay: float = Field(default=0.01, ge=0, le=1e6)
    """AdamW's weight decay."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the averaged weights, which are those that draw."""
    log_every: int = free(100, ge=1)
    """Steps between lines of metrics.jsonl."""
    checkpoint_minutes: float = free(3.0, gt=0)
    """Time between checkpoints."""


class FlowConfig(TrainingConfig):
    """Flow matching: times are drawn, and the network tells noise from picture."""

    time_mean: float = 0.8
    """Mean of the logit of a time; 0 is a picture and 1 is noise."""
    time_std: float = Field(default=1.2, gt=0)
    """Standard deviation of the logit of a time."""
    noise_share: float = Field(default=0.25, ge=0, le=1)
    """Share of the scenes at time 1, where every sampler begins and one step ends."""


class DistillationConfig(TrainingConfig):
    """Distillation to four steps."""

    minutes: float = Field(default=25.0, gt=0, le=1e5)
    """Training time by the clock, over which the learning rate falls; a machine that is busy has fewer steps."""
    batch: int = Field(default=48, ge=6, le=2**16)
    """Scenes a step, the six categories in turn."""
    lr: float = Field(default=1.5e-3, gt=0, le=1)
    """Peak learning rate of AdamW."""
    later_share: float = Field(default=1 / 3, ge=0, le=1)
    """Share of the scenes that are told again at a later state of the sampler."""


class TeacherConfig(Config):
    """A klein of the captioned world: many steps by flow matching, then distilled to four."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the weights, the scenes, the noise and the times."""
    width: int = Field(default=64, ge=16, le=1024)
    """Numbers of a token within the transformer."""
    heads: int = Field(default=2, ge=1, le=64)
    """Heads of its attention."""
    blocks: tuple[int, int] = (1, 4)
    """Blocks with streams of their own for text and picture, and blocks of one stream."""
    reading_steps: int = Field(default=300, ge=1, le=2**31)
    """Optimizer steps of the text encoder."""
    flow: FlowConfig = FlowConfig()
    """The first training."""
    distillation: DistillationConfig = DistillationConfig()
    """The second."""
    judged: int = Field(default=600, ge=12, le=2**20)
    """Pictures that are judged of each number of steps, of compositions trained on and of those held out."""
