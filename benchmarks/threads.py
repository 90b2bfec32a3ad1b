"""A rollout's images and features there and back, its micro-batches whole and in parts: all threads of this CPU.

python benchmarks/threads.py [world digits ...] [--rounds 5]

Networks of the presets, encoders fitted for two steps: what they cost does not depend on their weights. Seconds of the
clock; both ways take turns in one process. The distances between are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from irdm.build import build_battery, build_generator
from irdm.conditions import draw
from irdm.gradcache import GradientCache
from irdm.ops.sampling import normal_rows
from irdm.presets import PRESETS
from irdm.process import keep_freed_memory


def measure(preset: str, rounds: int) -> None:
    """Print the seconds of both ways, and the median of their ratio."""
    config = PRESETS[preset]()
    config = config.model_copy(update={"battery": config.battery.model_copy(update={"steps": 2, "images": 2000})})
    dataset, n, micro_batch = config.data.build(), config.rollout, config.micro_batch or config.rollout
    battery, conditions = build_battery(config, dataset, None, "cpu", lambda text: None), dataset.train.conditions
    encoders = {name: battery.encoders[name] for name in battery.held_in}
    generator = build_generator(config, dataset.image_shape, conditions.spec)
    parameters = list(generator.trained().values())
    noise = normal_rows(slice(0, n), generator.noise_shape, "benchmark")
    inputs = conditions[draw(conditions, n, "benchmark")].inputs()

    def images(part: slice) -> torch.Tensor:
        return generator(noise[part], **{name: value[part] for name, value in inputs.items()})

    def once(cache: GradientCache) -> float:
        for parameter in parameters:
            parameter.grad = None
        start = time.perf_counter()
        features = cache.forward(images, n)
        cache.backward({name: torch.ones_like(rows) for name, rows in features.items()})
        return time.perf_counter() - start

    caches = [GradientCache(encoders, micro_batch, None, side_by_side) for side_by_side in ((), parameters)]
    for cache in caches:
        once(cache)
    found = [[once(cache) for cache in caches] for _ in range(rounds)]
    whole, parts = (statistics.median(times) for times in zip(*found, strict=True))
    ratio = statistics.median(one / other for one, other in found)
    print(
        f"{preset}: rollout {n} by {micro_batch}, {torch.get_num_threads()} threads: whole {whole:.3f} s, in parts "
        f"{parts:.3f} s, {ratio:.2f} times as fast"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", default=["digits", "world"])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    keep_freed_memory()
    for preset in given.presets:
        measure(preset, given.rounds)


if __name__ == "__main__":
    main()
