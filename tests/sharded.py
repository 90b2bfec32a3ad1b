"""What two processes do with a klein divided between them; tests/test_klein_path.py starts them, by torchrun.

torchrun --nproc-per-node 2 tests/sharded.py OUT
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import conftest  # noqa: E402, F401 (mends torchvision)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import Tensor, nn  # noqa: E402

ROWS, MICRO, SHAPE = 8, 2, (3, 32, 32)
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "bfloat16, checkpointing": {"precision": "bfloat16", "gradient_checkpointing": True},
    "lora on bfloat16": {"lora_rank": 4, "precision": "bfloat16"},
}
RUNS = "runs.json"
"""{name: words of `irdm train`} of the runs that two processes make or go on with; `odd` is one that is disturbed."""


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
    everyone = together(ranks, features).requires_grad_()
    loss = torch.exp(-torch.cdist(everyone, everyone).square()).mean() + everyone.square().mean()
    cache.backward({"p": torch.autograd.grad(loss, everyone)[0][share]})
    parameters = list(generator.trained().values())
    ranks.sum_gradients(parameters)
    return nn.utils.clip_grad_norm_(parameters, 1e9).item()


def together(ranks, rows: Tensor) -> Tensor:
    """The rows of all ranks, which have equally many."""
    parts = [rows.detach()]
    if ranks.size > 1:
        parts = [torch.empty_like(rows) for _ in range(ranks.size)]
        dist.all_gather(parts, rows.detach())
    return torch.cat(parts).clone()


def look(ranks, **fields: Any) -> dict[str, Any]:
    """Gradients, norms and averages of one network over two steps, with a forward without gradient in between."""
    from irdm.ema import EMA
    from irdm.ops.shards import own, whole

    generator = build(**fields)
    if ranks.size > 1:
        ranks.meet()
        ranks.divide(generator.divisible(), "klein", generator.rounded)
    trained, transformer = generator.trained(), generator.transformer
    ema, optimizer = EMA(trained, 0.5), torch.optim.AdamW(trained.values(), lr=1e-3)
    found: dict[str, Any] = {}
    used: set[str] = set()
    for block in (transformer, *transformer.single_transformer_blocks):
        block.register_forward_pre_hook(lambda module, _: used.update(str(p.dtype) for p in module.parameters(False)))
    block = transformer.single_transformer_blocks[0].attn.to_out
    block.register_forward_pre_hook(lambda module, _: used.update(str(p.dtype) for p in module.parameters()))

    def keep(name: str, tensors: dict[str, Any]) -> None:
        found[name] = {key: whole(tensor.detach()).clone() for key, tensor in tensors.items()}

    norms = [gradient(ranks, generator)]
    sums = sum(own(p.grad).numel() for p in trained.values() if p.grad is not None)
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
    held = sum(own(parameter).numel() for parameter in trained.values())
    types = {str(p.dtype) for p in trained.values()} | {str(p.grad.dtype) for p in trained.values()}
    found |= {"norms": norms, "frozen": frozen, "kinds": kinds, "held": held, "sums": sums}
    return {**found, "used": sorted(used), "types": sorted(types)}


def placed(ranks, model: Path) -> dict[str, Any]:
    """When each rank built a larger network from files of many parts, what it took at most and what it holds of it."""
    from tiny_klein import resident

    from irdm.build import place_generator
    from irdm.conditions import PromptSpec
    from irdm.generators import KleinConfig
    from irdm.ops.shards import own
    from irdm.presets import PRESETS

    config = PRESETS["klein-tiny"]().model_copy(update={"generator": KleinConfig(model=model), "shard": True})
    moments: list[float] = []
    before = resident(reset=True)
    place = ranks.in_turn
    ranks.in_turn = lambda function: place(lambda: (moments.append(time.monotonic()), function())[1])
    generator = place_generator(
        config, SHAPE, PromptSpec(embedder="none", width=4), ranks.device, ranks, restored=False
    )
    ranks.in_turn = place
    parameters = list(generator.transformer.parameters())
    held = sum(own(parameter).nbytes for parameter in parameters)
    most = resident()[1] - before[1]  # what is held now is counted: the allocator may keep what was freed
    numbers = [moments[0], held, most]
    found = together(ranks, torch.tensor([numbers], dtype=torch.float64))
    whole = sum(parameter.numel() for parameter in parameters) * 4
    return {"began": found[:, 0].tolist(), "now": found[:, 1].tolist(), "most": found[:, 2].tolist(), "whole": whole}


def disturbed(rank: int):
    """A rank whose first gradient is not finite, and which is asked to end during its second step."""
    real, calls = nn.utils.clip_grad_norm_, []

    def clip(*given, **more):
        calls.append(0)
        norm = real(*given, **more)
        if len(calls) == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return norm * torch.nan if len(calls) == 1 and rank == 1 else norm

    nn.utils.clip_grad_norm_ = clip
    return real


def main(out: Path) -> None:
    from irdm.cli import main as irdm
    from irdm.distributed import Ranks

    torch.set_num_threads(1)
    ranks = Ranks.start("cpu")
    found = {name: look(ranks, **fields) for name, fields in CASES.items()}
    found["placed"] = placed(ranks, out / "medium")
    if ranks.is_main:
        torch.save(found, out / "two.pt")
    for name, words in json.loads((out / RUNS).read_text()).items():
        if name == "odd":
            real = disturbed(ranks.rank)
            try:
                code = irdm(words)
            except SystemExit as stopped:
                code = stopped.code
            nn.utils.clip_grad_norm_ = real
            assert code == (130, 143)[ranks.rank], f"rank {ranks.rank} ended with {code}"
        assert irdm(words) == 0, name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
