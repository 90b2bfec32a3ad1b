"""What a run takes on GPUs that are named and not here: memory, hours and files, with all weights, divided, with LoRA.

From the networks as they are counted (`irdm.estimate`) and the data sheets of the cards; nobody has measured it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from irdm.conditions import Spec
from irdm.data.base import Shape
from irdm.estimate import FLOAT, Cost, estimate, generator_cost, step_seconds
from irdm.fields import UsageError, nearest
from irdm.generators import KleinConfig
from irdm.generators.klein_folder import published_sizes
from irdm.presets import RunConfig
from irdm.progress import duration

GIB = 2**30
REACHED = 0.8  # of the rate on a data sheet, by a large matrix product
SPARE = 0.9  # of the memory of a card may be planned with
RANK = 64  # of adapters, where the run has none
KINDS = {  # gigabytes, and dense bfloat16 TFLOP/s summed in float32
    "RTX3090": (24, 71),
    "RTX4090": (24, 165),
    "RTX5090": (32, 210),
    "L40S": (48, 362),
    "A100-40": (40, 312),
    "A100": (80, 312),
    "H100": (80, 989),
    "H200": (141, 989),
    "B200": (180, 2250),
}


@dataclass(frozen=True)
class Cards:
    """`count` GPUs of a kind: bytes of each, and operations a second that a large matrix product reaches."""

    count: int
    kind: str
    memory: float
    rate: float


def cards_of(text: str) -> Cards:
    """`8xH200`, or `H200` for one. Raises UsageError for a kind that is not in the table."""
    match = re.fullmatch(r"(?:(\d+) ?x ?)?([\w-]+)", text, re.IGNORECASE)
    kind = match[2].upper() if match else text
    if match is None or kind not in KINDS or match[1] == "0":
        raise UsageError(f"--for is '{text}'{nearest(kind, KINDS)}: a number and a card, such as 8xH200")
    gigabytes, teraflops = KINDS[kind]
    return Cards(int(match[1] or 1), kind, gigabytes * 1e9, teraflops * 1e12 * REACHED)


def ways(config: RunConfig, shape: Shape, spec: Spec, cards: Cards) -> list[str]:
    """A line for the run as it is and, of klein, for each other way to train it; what does not fit is told a knob."""
    generator = config.generator
    lines = [f"on {cards.count} x {cards.kind}, by data sheet and count, not measured:"]
    if not isinstance(generator, KleinConfig):
        return [*lines, _line("as configured", config, shape, spec, cards)]
    if not generator.model.is_dir() and str(generator.model) != "tiny":
        generator = generator.model_copy(update={"model": published_sizes(), "contexts": None})
        lines[0] = f"{lines[0][:-1]}; sizes of klein 4B, since there is no {config.generator.model}:"  # type: ignore[union-attr]
    rank = generator.lora_rank or RANK
    full, lora = (generator.model_copy(update={"lora_rank": r, "weights": None}) for r in (None, rank))
    whole, part = (generator_cost(one, shape, spec) for one in (full, lora))
    some = [("all weights", full, False, whole)]
    some += [("all weights, divided (--shard)", full, True, whole)] if cards.count > 1 else []
    some += [(f"adapters (--generator.lora-rank {rank})", lora, False, part)]
    for name, one, shard, cost in some:
        way = config.model_copy(update={"generator": one, "shard": shard})
        lines.append(_line(f"  {name}", way, shape, spec, cards, cost))
    return lines


def _line(name: str, config: RunConfig, shape: Shape, spec: Spec, cards: Cards, cost: Cost | None = None) -> str:
    """Memory of a GPU, hours, bytes of a checkpoint and of an export."""
    found = estimate(config, shape, spec, cards.count, cost)
    needed = sum(found.memory.values())
    seconds = step_seconds(found.flops, cards.rate, cards.count) * config.steps
    checkpoint = (3 + (config.ema_decay is not None)) * FLOAT * found.parameters
    text = (
        f"{name}: {needed / GIB:.1f} GiB a GPU of {cards.memory / GIB:.1f}, {duration(seconds)} for {config.steps} "
        f"steps, {seconds * cards.count / 3600:,.0f} GPU-hours, {checkpoint / GIB:.2g} GiB a checkpoint"
    )
    if needed <= SPARE * cards.memory:
        return text
    largest = sorted(found.memory.items(), key=lambda item: -item[1])[:3]
    parts = ", ".join(f"{part} {size / GIB:.1f}" for part, size in largest)
    return f"{text}\n    does not fit ({parts}): {_knob(config, found.memory, cards)}"


def _knob(config: RunConfig, memory: dict[str, float], cards: Cards) -> str:
    """What to turn first: what costs the least, of what is large."""
    batch = next((size for part, size in memory.items() if part.startswith("micro-batch")), 0.0)
    over = sum(memory.values()) - SPARE * cards.memory
    generator = config.generator
    if batch > GIB and not getattr(generator, "gradient_checkpointing", True):
        return "set --generator.gradient-checkpointing"
    micro_batch = min(config.micro_batch or config.rollout, -(-config.rollout // cards.count))
    if over < batch * (1 - 1 / micro_batch):
        return f"set --micro-batch {max(1, int(micro_batch * (1 - over / batch)))}"
    if isinstance(generator, KleinConfig) and generator.contexts is None and memory["frozen weights"] > 4 * GIB:
        knob = "encode captions once with `irdm contexts`, and"
    else:
        knob = ""
    if memory["encoders"] > over / 2:
        return f"{knob} hold fewer encoders (--battery.held-in, --battery.held-out)".strip()
    if not config.shard and cards.count > 1 and generator.kind == "klein":
        return f"{knob} divide the weights (--shard)".strip()
    return f"{knob} train adapters (--generator.lora-rank {RANK}), or take larger or more cards".strip()
