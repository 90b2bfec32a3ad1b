"""What two processes do with one klein divided between them; tests/test_klein_runs.py starts them, by torchrun.

torchrun --nproc-per-node 2 tests/sharded.py OUT DATA
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import conftest  # noqa: E402, F401 (mends torchvision)
import torch  # noqa: E402
from torch import nn  # noqa: E402

ROWS, MICRO, SHAPE = 8, 2, (3, 32, 32)
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "bfloat16, checkpointing": {"precision": "bfloat16", "gradient_checkpointing": True},
    "lora on bfloat16": {"lora_rank": 4, "precision": "bfloat16"},
}


def build(**fields: Any):
    """klein on the tiny folder."""
    from irdm.conditions import PromptSpec
    from irdm.generators import KleinConfig

    torch.manual_seed(0)
    return KleinConfig(**fields).build(SHAPE, PromptSpec(embedder="none", width=4))


def gradient(ranks, generator, looks: bool = False) -> float:
    """The gradient of a loss that couples all rows, into `.grad`; returns its norm."""
    from irdm.conditions import to_bytes
    from irdm.gradcache import GradientCache
    from irdm.ops.sampling import normal_rows

    share = ranks.share(ROWS)
    captions = to_bytes([f"prompt {row}" for row in range(ROWS)])[share]
    noise = normal_rows(share, generator.noise_shape, "test")
    if looks:  # as the picture of a check does
        with torch.no_grad():
            generator(noise[:1], captions[:1])
    torch.manual_seed(9)
    project = nn.Sequential(nn.Flatten(), nn.Linear(3072, 16)).requires_grad_(False)
    cache = GradientCache({"p": project}, MICRO, 0)
    features = cache.forward(lambda rows: generator(noise[rows], captions=captions[rows]), len(noise))["p"]
    everyone = ranks.gather(features, ROWS).requires_grad_()
    loss = torch.exp(-torch.cdist(everyone, everyone).square()).mean() + everyone.square().mean()
    cache.backward({"p": torch.autograd.grad(loss, everyone)[0][share]})
    parameters = list(generator.trained().values())
    ranks.sum_gradients(parameters)
    return nn.utils.clip_grad_norm_(parameters, 1e9).item()


def look(ranks, **fields: Any) -> dict[str, Any]:
    """Gradients, norms and averages of one network over two steps, with a forward without gradient in between."""
    from irdm.ema import EMA

    generator = build(**fields)
    if ranks.size > 1:
        ranks.divide(generator.divisible(), "klein")
    trained, transformer = generator.trained(), generator.transformer
    ema, optimizer = EMA(trained, 0.5), torch.optim.AdamW(trained.values(), lr=1e-3)
    found: dict[str, Any] = {}

    def keep(name: str, tensors: dict[str, Any]) -> None:
        found[name] = ranks.snapshot({name: tensors})[name]

    norms = [gradient(ranks, generator)]
    keep("gradients", {name: parameter.grad for name, parameter in trained.items()})
    for step in range(2):
        optimizer.step()
        ema.update(step)
        optimizer.zero_grad()
        norms.append(gradient(ranks, generator, looks=True))
    with ema.applied():
        keep("applied", trained)
    keep("weights", trained)
    keep("average", ema.state_dict())
    frozen = [name for name, p in transformer.named_parameters() if not p.requires_grad and p.grad is not None]
    kinds = sorted({type(parameter).__name__ for parameter in transformer.parameters()})
    held = sum(p.to_local().numel() if ranks.size > 1 else p.numel() for p in trained.values())
    return {**found, "norms": norms, "frozen": frozen, "kinds": kinds, "held": held}


def run_of(data: Path, steps: int, **fields: Any):
    """A short run of tiny klein on captioned images."""
    from irdm.data import CaptionedConfig
    from irdm.encoders import LocalBatteryConfig
    from irdm.generators import KleinConfig
    from irdm.metrics import EvaluationConfig
    from irdm.presets import PRESETS

    update = {
        "data": CaptionedConfig(path=(data,), embedder="ngrams"),
        "generator": KleinConfig(length=96),
        "battery": LocalBatteryConfig(steps=2, width=2),
        "evaluation": EvaluationConfig(draws=1, directions=16, rff_features=32, resamples=8, ladder=0, quick_rows=40),
        **{"rollout": 16, "micro_batch": 4, "steps": steps, "shard": True, "ema_decay": 0.9, "check_every": 2},
        **{"log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 9},
    }
    return PRESETS["klein-tiny"]().model_copy(update=update | fields)


def main(out: Path, data: Path) -> None:
    from irdm.distributed import Ranks
    from irdm.train import train

    torch.set_num_threads(1)
    ranks = Ranks.start("cpu")
    found = {name: look(ranks, **fields) for name, fields in CASES.items()}
    if ranks.is_main:
        torch.save(found, out / "two.pt")
    train(run_of(data, 4), out / "straight")
    train(run_of(data, 4, evaluation=None), out / "resumed")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
