"""The blocked Nystrom MMD against the same equation left to autograd: seconds, memory and arithmetic rate.

    python benchmarks/mmd.py [--device cuda] [--rows 5120] [--width 1024] [--bandwidths 4] [--processor-time]
                             [--quick] [--write]

The baseline is the plain formula, chunked by rows and checkpointed, so that it too never stores n x n. Each contender
runs in a process of its own; its memory is the peak during value and gradient less the level just before (with the
libraries warmed up on a small problem) and less the gradient returned, which both must hold.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from irdm.ops.kernels import squared_mmd
from irdm.ops.radial import Gaussian

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def blocked_mmd(fake: Tensor, landmarks: Tensor, alpha: Tensor, gammas: tuple[float, ...]) -> Tensor:
    """The library's."""
    return squared_mmd(fake, landmarks, alpha, Gaussian(gammas))


def plain_mmd(fake: Tensor, landmarks: Tensor, alpha: Tensor, gammas: tuple[float, ...], chunk: int = 1024) -> Tensor:
    """The equation as one would write it: kernel chunks, recomputed in the backward pass."""

    def squares(x: Tensor, y: Tensor) -> Tensor:
        return (x.square().sum(dim=1, keepdim=True) + y.square().sum(dim=1) - 2 * x @ y.T).clamp(min=0)

    def part(x: Tensor, every: Tensor) -> Tensor:
        near, far = squares(x, every), squares(x, landmarks)
        total = x.new_zeros(())
        for b, gamma in enumerate(gammas):
            repulsion = torch.exp(-gamma * near).sum() / len(every) ** 2
            attraction = (torch.exp(-gamma * far) @ alpha[b]).sum() / len(every)
            total = total + (repulsion - 2 * attraction) / len(gammas)
        return total

    parts = [checkpoint(part, rows, fake, use_reentrant=False) for rows in fake.split(chunk)]
    return torch.stack(parts).sum()


CONTENDERS: dict[str, Callable[..., Tensor]] = {"blocked": blocked_mmd} | {
    f"autograd, {chunk} rows": partial(plain_mmd, chunk=chunk) for chunk in (1024, 512, 256, 128)
}


def problem(rows: int, width: int, landmarks: int, bandwidths: int, device: str) -> tuple:
    """Random rows, landmarks and coefficients, the median bandwidth and its multiples by powers of two."""
    generator = torch.Generator().manual_seed(0)
    fake = torch.randn(rows, width, generator=generator).to(device).requires_grad_()
    points = torch.randn(landmarks, width, generator=generator).to(device)
    alpha = (torch.rand(bandwidths, landmarks, generator=generator) / landmarks).to(device)
    return fake, points, alpha, tuple(1 / (2 * 2 * width * 4.0**b) for b in range(bandwidths))


def wait(device: str) -> None:
    """Wait for queued work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    """Time of one run."""
    wait(device)
    start = clock()
    work()
    wait(device)
    return clock() - start


def peak_bytes(device: str) -> int:
    """The most memory held since `held_bytes`: by the process on a CPU (Linux), in tensors on CUDA."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def held_bytes(device: str) -> int:
    """The memory held now, freed pages given back first; the peak starts again from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(name: str, shape: tuple[int, int, int, int], device: str, repeats: int, clock: Callable[[], float]) -> dict:
    """Memory of the first value and gradient, then the best times of it and of a plain matrix product."""
    contender = CONTENDERS[name]

    def run(arguments: tuple) -> tuple[Tensor, Tensor]:
        value = contender(*arguments)
        return value.detach(), torch.autograd.grad(value, arguments[0])[0]

    run(problem(256, shape[1], 256, shape[3], device))
    arguments = problem(*shape, device)
    wait(device)
    before = held_bytes(device)
    value, gradient = run(arguments)
    wait(device)
    extra = peak_bytes(device) - before - gradient.nbytes
    checks = {"value": value.item(), "gradient": gradient.double().norm().item()}
    a, out = torch.randn(2048, 2048, device=device), torch.empty(2048, 2048, device=device)
    turns = [  # in turn, so that a busy machine slows both alike
        (seconds(lambda: run(arguments), device, clock), seconds(lambda: torch.mm(a, a, out=out), device, clock))
        for _ in range(repeats)
    ]
    best, product = (min(times) for times in zip(*turns, strict=True))
    return {"seconds": best, "extra_bytes": extra, "matmul_rate": 2 * 2048**3 / product, **checks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", type=int, default=5120)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--landmarks", type=int, default=4096)
    parser.add_argument("--bandwidths", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--processor-time", action="store_true", help="one thread, processor seconds: for a machine shared with others"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--write", action="store_true", help="append the table to docs/benchmarks.md")
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.width, args.landmarks, args.repeats = 512, 64, 256, 1
    shape = (args.rows, args.width, args.landmarks, args.bandwidths)
    if args.processor_time:
        torch.set_num_threads(1)
    if args.contender:
        clock = time.process_time if args.processor_time else time.perf_counter
        print(json.dumps(measure(args.contender, shape, args.device, args.repeats, clock)))
        return
    flags = [a for a in sys.argv[1:] if a != "--write"]
    results = {}
    for name in CONTENDERS:
        command = [sys.executable, __file__, *flags, "--contender", name]
        results[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    table = report(results, shape, args.device, "processor seconds" if args.processor_time else "seconds")
    print(table)
    if args.write:
        with DOCUMENT.open("a") as document:
            document.write("\n" + table)


def report(results: dict[str, dict], shape: tuple[int, int, int, int], device: str, unit: str) -> str:
    """A dated markdown section."""
    n, d, m, bandwidths = shape
    ours, plain = results["blocked"], results["autograd, 1024 rows"]
    work = 3 * n * n * d + 4 * n * m * d
    cpu = f"{platform.machine()}, {torch.get_num_threads()} thread(s)"
    machine = torch.cuda.get_device_name() if device == "cuda" else cpu
    lines = [
        f"### Nystrom MMD, {datetime.date.today()}: n={n}, d={d}, m={m}, {bandwidths} bandwidth(s), float32",
        "",
        f"{machine}, PyTorch {torch.__version__}. Value and gradient.",
        "",
        f"| | {unit} | times blocked | extra peak memory, MiB |",
        "|---|---|---|---|",
    ]
    for name, result in results.items():
        ratio = result["seconds"] / ours["seconds"]
        lines.append(f"| {name} | {result['seconds']:.3g} | {ratio:.1f} | {result['extra_bytes'] / 2**20:.0f} |")
    share = work / ours["seconds"] / ours["matmul_rate"]
    lines += [
        "",
        f"Blocked runs at {share:.0%} of the matrix-product rate, in "
        f"1/{plain['extra_bytes'] / ours['extra_bytes']:.1f} of the memory of 1024-row chunks; "
        f"3n^2d + 4nmd = {work / 1e9:.0f} GFLOP at "
        f"{work / ours['seconds'] / 1e9:.0f} GFLOP/s against "
        f"{ours['matmul_rate'] / 1e9:.0f} for a 2048^3 product in the same process. Relative difference of the values "
        f"{abs(ours['value'] / plain['value'] - 1):.0e}, of the gradient norms "
        f"{abs(ours['gradient'] / plain['gradient'] - 1):.0e}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
