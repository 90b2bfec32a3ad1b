"""What a run takes on GPUs that are named, or here: memory, hours and files, with all weights, divided, with LoRA.

From the networks as they are counted (`irdm.estimate`) and the data sheets of the cards; nobody has measured it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from irdm.conditions import NoSpec, Spec
from irdm.data.base import Shape
from irdm.encoders.panel import PanelBatteryConfig, entries
from irdm.estimate import FLOAT, Cost, encoder_costs, estimate, generator_cost, step_seconds
from irdm.fields import UsageError, nearest
from irdm.generators import KleinConfig
from irdm.generators.klein_folder import published_sizes
from irdm.presets import RunConfig
from irdm.progress import duration

GIB = 2**30
REACHED = 0.8  # of the rate on a data sheet, by a large matrix product
BUS = 25e9  # bytes a second from main memory to a card, of PCIe 4.0 with 16 lanes
SPARE = 0.9  # of the memory of a card may be planned with
RANK = 64  # of adapters, where the run has none
RECOMPUTED = 10  # times less is kept of a network whose blocks are recomputed
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
    here: bool = False
    """Whether they are here, and the rate was measured; else it is from a data sheet."""


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
    known = "by count and one product measured here" if cards.here else "by data sheet and count, not measured"
    lines = [f"on {cards.count} x {cards.kind}, {known}:"]
    if not isinstance(generator, KleinConfig):
        return [*lines, _line("as configured", config, shape, spec, cards)]
    if not generator.model.is_dir() and str(generator.model) != "tiny":
        generator = generator.model_copy(update={"model": published_sizes(), "contexts": None})
        lines[0] = f"{lines[0][:-1]}; sizes of klein 4B, since there is no {config.generator.model}:"  # type: ignore[union-attr]
    rank = generator.lora_rank or RANK
    full, lora = (generator.model_copy(update={"lora_rank": r, "weights": None, "base": None}) for r in (None, rank))
    whole, part = (generator_cost(one, shape, spec) for one in (full, lora))
    some = [("all weights", full, False, whole)]
    some += [("all weights, divided (--shard)", full, True, whole)] if cards.count > 1 else []
    some += [(f"adapters (--generator.lora-rank {rank})", lora, False, part)]
    some += [("adapters, divided (--shard)", lora, True, part)] if cards.count > 1 else []
    for name, one, shard, cost in some:
        way = config.model_copy(update={"generator": one, "shard": shard})
        lines.append(_line(f"  {name}", way, shape, spec, cards, cost))
    return [*lines, *_battery(config, shape, spec)]


def _battery(config: RunConfig, shape: Shape, spec: Spec) -> list[str]:
    """In which precision the encoders of the panel compute, and what they take."""
    battery = config.battery
    if not isinstance(battery, PanelBatteryConfig):
        return []
    sizes = [FLOAT * cost.parameters / GIB for cost, _ in encoder_costs(battery, shape, spec).values()]
    rows = entries(battery.names)
    whole = ", ".join(row.name for row in rows if row.precision == "float32")
    where = ("on the GPU", "in main memory")[battery.offload]
    other = f"{max(sizes):.1f} at a time with" if not battery.offload else f"{max(sizes):.1f} at a time on the GPU by"
    return [
        f"  {len(rows)} encoders compute in bfloat16" + f" ({whole} in float32)" * bool(whole) + ", their weights are "
        f"float32: {sum(sizes):.1f} GiB {where}, {other} --battery.offload"
    ]


def _line(name: str, config: RunConfig, shape: Shape, spec: Spec, cards: Cards, cost: Cost | None = None) -> str:
    """Memory of a GPU, hours, bytes of a checkpoint and of an export."""
    found = estimate(config, shape, spec, cards.count, cost)
    needed = sum(found.memory.values())
    seconds = (step_seconds(found.flops, cards.rate, cards.count) + _moving(config, shape, spec, cards)) * config.steps
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


def _moving(config: RunConfig, shape: Shape, spec: Spec, cards: Cards) -> float:
    """Seconds a step in which encoders that stay in main memory come to a GPU: each twice a micro-batch."""
    if not getattr(config.battery, "offload", False):
        return 0.0
    costs = encoder_costs(config.battery, shape, spec)
    size = sum(costs[name][0].parameters for name in config.battery.held_in)  # type: ignore[union-attr]
    share = -(-config.rollout // cards.count)
    return 2 * math.ceil(share / min(config.micro_batch or share, share)) * FLOAT * size / BUS


def _knob(config: RunConfig, memory: dict[str, float], cards: Cards) -> str:
    """What to turn until it fits, beginning with what costs least."""
    over = sum(memory.values()) - SPARE * cards.memory
    generator = config.generator
    micro_batch = min(config.micro_batch or config.rollout, -(-config.rollout // cards.count))
    turns: list[tuple[str, float]] = []  # a knob, and the bytes that it spares
    spared = 0.0
    if isinstance(generator, KleinConfig) and generator.contexts is None:
        encoder = generator.encoder()
        spared = encoder.parameters * encoder.dtype.itemsize
        turns.append(("encode captions once (`irdm contexts`)", spared))
    batch = next((size for part, size in memory.items() if part.startswith("micro-batch")), 0.0)
    if not getattr(generator, "gradient_checkpointing", True):
        turns.append(("set --generator.gradient-checkpointing", batch * (1 - 1 / RECOMPUTED)))
        batch /= RECOMPUTED
    fewer = max(1, int(micro_batch * (1 - max(0.0, over - sum(size for _, size in turns)) / max(batch, 1))))
    if fewer < micro_batch:
        turns.append((f"set --micro-batch {fewer}", batch * (1 - fewer / micro_batch)))
    if isinstance(config.battery, PanelBatteryConfig) and not config.battery.offload:
        largest = max(cost.parameters for cost, _ in encoder_costs(config.battery, (3, 8, 8), NoSpec()).values())
        knob = "hold fewer encoders (--battery.held-in) or keep them in main memory (--battery.offload)"
        turns.append((knob, memory["encoders"] - FLOAT * largest))
    if isinstance(generator, KleinConfig) and cards.count > 1 and not config.shard:
        weights = next(size for part, size in memory.items() if part.startswith("weights"))
        weights += memory["frozen weights"] - spared if generator.lora_rank else 0.0
        turns.append(("divide the weights (--shard)", weights * (1 - 1 / cards.count)))
    chosen: list[str] = []
    for knob, size in turns:
        if over > 0 and size > 0:
            chosen.append(knob)
            over -= size
    if over <= 0:
        return ", ".join(chosen)
    if isinstance(generator, KleinConfig) and generator.lora_rank is None:
        return f"train adapters (--generator.lora-rank {RANK}), or take larger or more cards"
    return "no knob spares as much: take larger or more cards, fewer encoders, or a smaller --rollout"
