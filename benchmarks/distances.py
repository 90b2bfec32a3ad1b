"""Value and gradient of the six distances over N and d: how time and memory grow, beside plain autograd.

    python benchmarks/distances.py [--device cuda] [--rows 256 1024 4096] [--widths 64 256 1024] [--write] [--quick]

The plain version of a distance is the same equation on the same reference as a careful user would write it: autograd
for everything, float64 for a covariance, chunks and checkpoints where a matrix would be n x n. Each cell is measured in
a process of its own, which loads a reference fitted elsewhere; its memory is the peak during the first value and
gradient less the level just before (warmed up on a small batch) and less the gradient itself. `--quick` takes tiny
sizes in one process, without memory: it shows that everything runs and that both versions agree, and nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmd import held_bytes, peak_bytes, plain_mmd, seconds, wait
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from irdm.distances import AnyDistance, Distance
from irdm.ops.sampling import generator_for, seed_for
from irdm.ops.sliced import unit_directions

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
OPTIONS = {
    "nystrom-mmd": {"landmarks": 1024, "kmeans_iterations": 2, "constant_rows": 1024},
    "exact-mmd": {"constant_rows": 1024},
}
QUICK_LANDMARKS = {"nystrom-mmd": {"landmarks": 32}}
STEP = 3


def real_batch(distance: Distance, count: int, *keys: int) -> Tensor:
    """The real rows that a distance with a pool draws at this step."""
    return distance.config.draw(distance.pool, count, distance.seed, STEP, *keys)


def plain_nystrom(fake: Tensor, distance: Distance) -> Tensor:
    """Chunked, checkpointed kernels against the landmarks."""
    return plain_mmd(fake, distance.landmarks, distance.alpha, distance.kernel.gammas) + distance.constant


def plain_exact(fake: Tensor, distance: Distance) -> Tensor:
    """Chunked, checkpointed kernels against a real batch."""
    real = real_batch(distance, len(fake))
    mean = real.new_full((1, len(real)), 1 / len(real))
    return plain_mmd(fake, real, mean, distance.kernel.gammas) + distance.constant


def plain_rff(fake: Tensor, distance: Distance) -> Tensor:
    """The features, and the distance of their means."""
    waves = (fake @ distance.frequencies + distance.phases).cos() * math.sqrt(2 / distance.config.features)
    return (waves.mean(dim=0) - distance.means).square().sum()


def plain_frechet(fake: Tensor, distance: Distance) -> Tensor:
    """The trace of the root through the eigenvalues of S_r (S_g + jitter), which are real and not negative."""
    rows = fake.double()
    product = distance.covariance @ (rows.T.cov() + distance.config.jitter * torch.eye(rows.shape[1]).to(rows))
    root = torch.linalg.eigvals(product).real.clamp(min=1e-30).sqrt().sum()
    spread = rows.var(dim=0).sum() + distance.covariance.trace()
    return (rows.mean(dim=0) - distance.mean).square().sum() + spread - 2 * root


def plain_sliced(fake: Tensor, distance: Distance) -> Tensor:
    """Sorted projections, squared differences."""
    seed = seed_for(int(distance.seed), "directions", STEP)
    directions = unit_directions(fake.shape[1], distance.config.directions, seed).to(fake)
    real = real_batch(distance, len(fake))
    return ((fake @ directions).sort(dim=0).values - (real @ directions).sort(dim=0).values).square().mean()


def plain_drifting(fake: Tensor, distance: Distance) -> Tensor:
    """The goal without a gradient, then a squared error."""
    n, width = fake.shape
    with torch.no_grad():
        targets = torch.cat([fake, real_batch(distance, n, 0)])
        apart = torch.cdist(fake, targets)
        scale = apart.mean()
        unit = scale / math.sqrt(width)
        apart = apart / scale + torch.cat([100 * torch.eye(n), torch.zeros(n, n)], dim=1).to(apart)
        goal = fake / unit
        for radius in distance.config.radii:
            logits = -apart / radius
            affinity = (logits.softmax(dim=1) * logits.softmax(dim=0)).clamp(min=1e-6).sqrt()
            negative, positive = affinity[:, :n], affinity[:, n:]
            weights = torch.cat(
                [-negative * positive.sum(dim=1, keepdim=True), positive * negative.sum(dim=1, keepdim=True)], dim=1
            )
            force = weights @ (targets / unit) - weights.sum(dim=1, keepdim=True) * (fake / unit)
            goal = goal + force / force.square().mean().sqrt()
    return (fake / unit - goal).square().mean()


PLAIN: dict[str, Callable[[Tensor, Distance], Tensor]] = {
    "nystrom-mmd": plain_nystrom,
    "exact-mmd": plain_exact,
    "rff-mmd": plain_rff,
    "frechet": plain_frechet,
    "sliced-wasserstein": plain_sliced,
    "drifting": plain_drifting,
}


def draw(rows: int, width: int, name: str) -> Tensor:
    """Standard normal rows, generated ones a little apart from the real."""
    return torch.randn(rows, width, generator=generator_for("benchmark", name)) + (0.2 if name == "fake" else 0)


def build(kind: str, quick: bool) -> Distance:
    """A distance of the benchmark's sizes, not fitted."""
    options = OPTIONS.get(kind, {}) | (QUICK_LANDMARKS.get(kind, {}) if quick else {})
    return TypeAdapter(AnyDistance).validate_python({"kind": kind, **options}).build()


def fit(kind: str, width: int, rows: int, quick: bool, path: Path) -> None:
    """Fit a reference to centred real rows and save it."""
    real = draw(rows, width, "real")
    save_file(build(kind, quick).fit(real - real.mean(dim=0), seed=0).state_dict(), path)


def measure(kind: str, version: str, rows: int, width: int, path: Path, device: str, repeats: int, quick: bool) -> dict:
    """Memory of the first value and gradient, the best time, and the numbers themselves."""
    distance = build(kind, quick)
    distance.load_state_dict(load_file(path))
    distance.to(device)
    distance.center.zero_()  # to rounding it is: the plain versions need not subtract it

    def run(fake: Tensor) -> tuple[Tensor, Tensor]:
        value = distance(fake, step=STEP) if version == "ours" else PLAIN[kind](fake, distance)
        return value.detach(), torch.autograd.grad(value, fake)[0]

    run(draw(16, width, "warm-up").to(device).requires_grad_())
    fake = draw(rows, width, "fake").to(device).requires_grad_()
    wait(device)
    before = held_bytes(device)
    value, gradient = run(fake)
    wait(device)
    extra = max(0, peak_bytes(device) - before - gradient.nbytes)
    best = min(seconds(lambda: run(fake), device, time.perf_counter) for _ in range(repeats))
    return {
        "seconds": best,
        "extra_bytes": None if quick else extra,
        "value": value.item(),
        "gradient": gradient.double().norm().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--kinds", nargs="+", choices=list(PLAIN), default=list(PLAIN))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes in one process, for a test")
    parser.add_argument("--write", action="store_true", help="append the tables to docs/benchmarks.md")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(measure(**json.loads(args.cell))))
        return
    if args.quick:
        args.rows, args.widths, args.repeats = [32, 64], [8, 16], 1
    results: dict[tuple[str, int, int, str], dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kinds:
            for width in args.widths:
                path = Path(folder) / f"{kind}-{width}.safetensors"
                fit(kind, width, 2 * max(args.rows), args.quick, path)
                for rows in args.rows:
                    for version in ("ours", "plain"):
                        cell = {"kind": kind, "version": version, "rows": rows, "width": width, "path": str(path)}
                        cell |= {"device": args.device, "repeats": args.repeats, "quick": args.quick}
                        results[kind, width, rows, version] = measure(**cell) if args.quick else apart(cell)
                    print(f"{kind}, d={width}, N={rows}: done", file=sys.stderr)
    table = report(results, args)
    print(table)
    if args.write:
        with DOCUMENT.open("a") as document:
            document.write("\n" + table)


def apart(cell: dict) -> dict:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--cell", json.dumps(cell)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def report(results: dict[tuple[str, int, int, str], dict], args: argparse.Namespace) -> str:
    """Dated markdown: a table of times and one of memory, each cell ours / plain."""
    cpu = f"{platform.machine()}, {torch.get_num_threads()} thread(s)"
    machine = torch.cuda.get_device_name() if args.device == "cuda" else cpu
    flags = " ".join(a for a in sys.argv[1:] if a != "--write")
    lines = [
        f"### Six distances, {datetime.date.today()}: value and gradient, float32",
        "",
        f"`{f'python benchmarks/distances.py {flags}'.strip()}`; {machine}, PyTorch {torch.__version__}; the best of "
        f"{args.repeats}. Each cell is ours / plain autograd; growth is the power of N between the last two sizes.",
    ]
    units = [("milliseconds", lambda r: 1000 * r["seconds"])]
    if not args.quick:
        units.append(("extra peak memory, MiB", lambda r: r["extra_bytes"] / 2**20))
    for unit, number in units:
        head = [unit, "d", *(f"N = {rows}" for rows in args.rows), "growth"]
        lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for kind in args.kinds:
            for width in args.widths:
                pairs = [[number(results[kind, width, rows, v]) for v in ("ours", "plain")] for rows in args.rows]
                cells = [f"{ours:.3g} / {plain:.3g}" for ours, plain in pairs]
                powers = [power(args.rows, [pair[version] for pair in pairs]) for version in (0, 1)]
                lines.append("| " + " | ".join([kind, str(width), *cells, " / ".join(powers)]) + " |")
    values, gradients = (
        max(
            abs(results[kind, width, rows, "plain"][name] / results[kind, width, rows, "ours"][name] - 1)
            for kind, width, rows, _ in results
        )
        for name in ("value", "gradient")
    )
    lines += ["", f"Largest relative difference of the values {values:.0e}, of the gradient norms {gradients:.0e}.", ""]
    return "\n".join(lines)


def power(rows: list[int], numbers: list[float]) -> str:
    """p of number ~ N^p between the last two sizes."""
    if len(rows) < 2 or min(numbers[-2:]) <= 0:
        return "-"
    return f"N^{math.log(numbers[-1] / numbers[-2]) / math.log(rows[-1] / rows[-2]):.1f}"


if __name__ == "__main__":
    main()
