"""What one rank of several computes of a loss: the slowest rank's core seconds and matrix products, over one process's.

python benchmarks/ranks.py [--rollout 2048] [--width 256] [--landmarks 1024] [--only NystromMMD ...]

Every rank's share is run after another in this process, value and gradient, without the messages between ranks: two
gathers and a sum of [rollout, width] numbers. The median of three.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from irdm.distances import RFFMMD, Drifting, ExactMMD, Frechet, NystromMMD, SlicedWasserstein
from irdm.distributed import Ranks


class Part(Ranks):
    """A rank that hears nothing of the others."""

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Its own part."""
        return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rollout", 2048), ("width", 256), ("landmarks", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="*", default=())
    given = parser.parse_args()
    torch.manual_seed(0)
    real, fake = torch.randn(2 * given.landmarks, given.width), torch.randn(given.rollout, given.width)
    distances = [NystromMMD(landmarks=given.landmarks, kmeans_iterations=1), ExactMMD(), RFFMMD(), SlicedWasserstein()]
    for distance in [*distances, Frechet(), Drifting()]:
        if given.only and type(distance).__name__ not in given.only:
            continue
        distance.fit(real)

        def cost(rank: int, size: int, distance=distance) -> tuple[float, int]:
            def once() -> None:
                distance(fake.clone().requires_grad_(), step=1, ranks=Part(rank, size)).backward()

            with FlopCounterMode(display=False) as counter:
                once()
            times = []
            for _ in range(3):
                began = time.process_time()
                once()
                times.append(time.process_time() - began)
            return statistics.median(times), counter.get_total_flops()

        alone = cost(0, 1)
        line = f"{type(distance).__name__:18} alone {alone[0]:.3f} s"
        for size in (2, 4, 8):
            found = [cost(rank, size) for rank in range(size)]
            seconds, products = (max(part[k] for part in found) / alone[k] for k in (0, 1))
            line += f"   {size} ranks: time {seconds:.3f}, operations {products:.3f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
