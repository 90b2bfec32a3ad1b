"""What fitting a reference costs: k-means, moments and mean embeddings, measured small and extrapolated to ImageNet.

    python benchmarks/reference.py [--quick] [--write]

Each cost is measured while one of its sizes doubles, the others fixed: the exponents say whether it may be extrapolated
as a product of the sizes. Features are Gaussian: the time depends on sizes alone.
"""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from irdm.ops.embedding import kernel_means
from irdm.ops.gaussian import Moments
from irdm.ops.kmeans import kmeans
from irdm.ops.radial import Gaussian

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
IMAGES, WIDTH, CENTRES, ITERATIONS, KMEANS_ROWS = 1_281_167, 1024, 4096, 20, 200_000
SIZES = {"n": 8192, "d": 512, "k": 1024}
LETTERS = {"k-means, an iteration": "ndk", "mean embedding at the landmarks": "ndk", "moments": "ndd"}


def case(name: str, n: int, d: int, k: int) -> Callable[[], object]:
    """What is timed, once, at these sizes."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    if name == "moments":
        return lambda: Moments.of(rows.split(8192))
    if name == "k-means, an iteration":
        return lambda: kmeans(rows, k, torch.Generator().manual_seed(1), iterations=1)
    kernel = Gaussian([1 / (2 * d)])
    return lambda: kernel_means(rows[:k], rows.split(8192), kernel)


def seconds(action: Callable[[], object], repeats: int) -> float:
    """The median of processor seconds, after one run that is not counted."""
    action()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--write", action="store_true", help="append the table to docs/benchmarks.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {letter: size // (16 if args.quick else 1) for letter, size in SIZES.items()}
    lines = [
        f"### Fitting a reference, {datetime.date.today()}",
        "",
        f"`python benchmarks/reference.py{' --quick' if args.quick else ''}`; {platform.machine()}, 1 thread, PyTorch "
        f"{torch.__version__}; processor seconds, median of {args.repeats}. Measured at " + ", ".join(
            f"{letter} = {size}" for letter, size in sizes.items()
        ) + f". Extrapolated to {IMAGES:,} rows (k-means: {KMEANS_ROWS:,} and all), d = {WIDTH}, k = {CENTRES}.",
        "",
        "| | seconds | growth with n, d, k | one encoder of ImageNet, one core |",
        "|---|---|---|---|",
    ]  # fmt: skip
    for name, letters in LETTERS.items():
        base = seconds(case(name, **sizes), args.repeats)
        growth = []
        for letter in dict.fromkeys(letters):
            doubled = seconds(case(name, **(sizes | {letter: 2 * sizes[letter]})), args.repeats)
            growth.append(f"{letter}^{math.log2(doubled / base):.1f}")
        target = {"n": IMAGES, "d": WIDTH, "k": CENTRES}
        whole = base * math.prod(target[letter] / sizes[letter] for letter in letters)
        if name.startswith("k-means"):
            whole *= ITERATIONS
            few = whole * KMEANS_ROWS / IMAGES
            says = f"{few / 60:.0f} minutes ({ITERATIONS} iterations of {KMEANS_ROWS:,}); all rows: {whole / 60:.0f}"
        else:
            says = f"{whole / 60:.1f} minutes"
        lines.append(f"| {name} | {base:.3g} | {', '.join(growth)} | {says} |")
    table = "\n".join(lines) + "\n"
    print(table)
    if args.write:
        DOCUMENT.write_text(DOCUMENT.read_text() + "\n" + table)


if __name__ == "__main__":
    main()
