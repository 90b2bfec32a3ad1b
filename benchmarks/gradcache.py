"""What the gradient cache saves when graphs fit the memory, and when an encoder has weight 0.

    python benchmarks/gradcache.py [--write]

The digits generator and battery, rollout 1024 in micro-batches of 256: images and features only, the loss's gradient is
free, so that what is timed is the forward and backward passes.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from pathlib import Path

import torch

from irdm.build import build_battery, build_generator
from irdm.conditions import draw
from irdm.gradcache import GradientCache
from irdm.presets import digits
from irdm.process import keep_freed_memory

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
ROLLOUT, MICRO_BATCH = 1024, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="append the table to docs/benchmarks.md")
    args = parser.parse_args()
    keep_freed_memory()
    config = digits()
    dataset = config.data.build()
    battery = build_battery(config, dataset, None, "cpu", print)
    encoders = {name: battery.encoders[name] for name in battery.held_in}
    conditions = dataset.train.conditions
    generator = build_generator(config, dataset.image_shape, conditions.spec)
    noise = torch.randn(ROLLOUT, *generator.noise_shape)
    inputs = conditions[draw(conditions, ROLLOUT, "benchmark")].inputs()
    heavy = ("content", "patches", "bands")
    cases = {
        "no graph kept": ((), 0),
        "some graphs kept": ((), None),
        "all graphs kept": ((), 1 << 34),
        "no graph kept, three encoders at weight 0": (heavy, 0),
        "all graphs kept, three encoders at weight 0": (heavy, 1 << 34),
    }

    def step(idle: tuple[str, ...], graph_bytes: int) -> tuple[float, int]:
        cache, start = GradientCache(encoders, MICRO_BATCH, graph_bytes), time.perf_counter()
        features = cache.forward(
            lambda rows: generator(noise[rows], **{name: value[rows] for name, value in inputs.items()}), ROLLOUT, idle
        )
        kept = sum(chunk.images is not None for chunk in cache.chunks)
        cache.backward({name: torch.ones_like(x) for name, x in features.items() if name not in idle})
        return time.perf_counter() - start, kept

    half = next(b for b in (2**i for i in range(16, 34)) for _ in [0] if step((), b)[1] >= 2)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    kept = {}
    for _ in range(args.repeats):  # in turn, so that a busy machine slows all alike
        for name, (idle, graph_bytes) in cases.items():
            elapsed, kept[name] = step(idle, half if graph_bytes is None else graph_bytes)
            seconds[name].append(elapsed)
    base = seconds["no graph kept"]
    lines = [
        f"### Gradient cache, {datetime.date.today()}: {len(encoders)} encoders, rollout {ROLLOUT} by {MICRO_BATCH}",
        "",
        f"`python benchmarks/gradcache.py`; {platform.machine()}, {torch.get_num_threads()} threads, PyTorch "
        f"{torch.__version__}; median of {args.repeats} steps and of the ratios within a round.",
        "",
        "| | kept, of 4 | milliseconds | of the time without |",
        "|---|---|---|---|",
    ]
    for name, times in seconds.items():
        ratio = statistics.median(t / b for t, b in zip(times, base, strict=True))
        lines.append(f"| {name} | {kept[name]} | {1000 * statistics.median(times):.0f} | {ratio:.2f} |")
    table = "\n".join(lines) + "\n"
    print(table)
    if args.write:
        DOCUMENT.write_text(DOCUMENT.read_text() + "\n" + table)


if __name__ == "__main__":
    main()
