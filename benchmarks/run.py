"""Measure speed, memory and errors; print them, and append them to the ledger.

    python benchmarks/run.py [GROUP ...] [--device cuda] [--small] [--repeats 5] [--record] [--page]

On a CPU one thread is measured in processor seconds, which other programs on the machine hardly change; on CUDA seconds
of the clock. The implementations of one work take turns. A share of the matrix rate is that of the rate at which this
process multiplies large matrices of the same type; MFU is the share of the rate on the card's data sheet. An error is
relative to float64 (of the six distances: to autograd): of the value, and of the gradient by its norm.

`--small` takes tiny sizes, to see that everything runs and agrees. What cannot run here is named, never passed over.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import cases  # noqa: E402
import ledger  # noqa: E402
import steps  # noqa: E402
import torch  # noqa: E402
from cases import Case, Skip, tf32  # noqa: E402
from ledger import Entry  # noqa: E402

from irdm import __version__  # noqa: E402
from irdm.cards import KINDS  # noqa: E402

GROUPS: dict[str, Callable[[str, bool], Iterator[Case]]] = {
    "mmd": cases.mmd,
    "sliced": cases.sliced,
    "references": cases.references,
    "distances": cases.distances,
    "gradcache": steps.gradcache,
    "imagenet": steps.imagenet,
    "klein": steps.klein,
    "fashion": partial(steps.training, "fashion"),
    "world": partial(steps.training, "world"),
}
QUANTILES = (0.5, 0.2, 0.8)


def wait(device: str) -> None:
    """Wait for queued work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str) -> float:
    """Of one run: of the clock on CUDA, of the processor elsewhere."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    wait(device)
    start = clock()
    work()
    wait(device)
    return clock() - start


def held_bytes(device: str) -> int:
    """The memory held now, freed pages given back first; the peak starts again from here."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes(device: str) -> int:
    """The most memory held since `held_bytes`: by the process on a CPU (Linux), in tensors on CUDA."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def matrix_rate(products: str, device: str, small: bool) -> float:
    """Operations a second of a large matrix product with factors of a type; the best of five."""
    size = 256 if small else 8192 if device == "cuda" else 2048
    dtype = torch.float32 if products == "TF32" else getattr(torch, products)
    a = torch.ones(size, size, device=device, dtype=dtype)
    out = torch.empty_like(a)
    with tf32() if products == "TF32" else nullcontext():
        return 2 * size**3 / min(seconds(lambda: torch.mm(a, a, out=out), device) for _ in range(5))


def card(device: str) -> str:
    """What this was measured on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = "CPU"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{platform.machine()}, {model}, 1 thread"


def sheet_rate(name: str) -> float | None:
    """Operations a second in bfloat16 by the data sheet of a card; None for one that is not known."""
    kinds = [kind for kind in KINDS if kind.split("-")[0] in name.replace(" ", "").upper()]
    return KINDS[kinds[0]][1] * 1e12 if kinds else None


def errors(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> Iterator[tuple[str, float]]:
    """Relative, of a value and of a gradient."""
    for name, ours, true in zip(("error of the value", "error of the gradient"), found, exact, strict=True):
        yield name, float((ours.double() - true.double()).norm() / true.double().norm())


def measure(group: str, device: str, small: bool, repeats: int) -> Iterator[tuple[Case, dict[str, list[float]]]]:
    """Every case of a group with its quantities, each measured once or several times."""
    works: dict[str, list[Case]] = {}
    for case in GROUPS[group](device, small):
        if case.needs != "cpu" and case.needs != device:
            print(f"  skipped, needs {case.needs}: {case.implementation}", flush=True)
        else:
            works.setdefault(case.work, []).append(case)
    for chosen in works.values():
        exact = next((case.exact() for case in chosen if case.exact), None)
        memory, found = {}, {}
        for case in chosen:
            if case.clocked is None:
                case.run()  # warm
                before = held_bytes(device)
                numbers = case.run()
                wait(device)
                memory[case] = max(0, peak_bytes(device) - before) / 2**20
                found[case] = dict(errors(numbers, exact)) if numbers and exact and case.exact else {}
        times = {case: case.clocked() if case.clocked else [] for case in chosen}
        for _ in range(repeats):  # in turn, so that a busy machine slows all alike
            for case in chosen:
                if case.clocked is None:
                    times[case].append(seconds(case.run, device))
        for case in chosen:
            unit = "seconds" if device == "cuda" else "processor seconds"
            quantities = {unit: times[case]}
            if case.images:
                quantities[f"images a {unit.removesuffix('s')}"] = [case.images / t for t in times[case]]
            if case in memory:
                quantities["extra peak memory, MiB"] = [memory[case]]
            if case.flops:
                rate = matrix_rate(case.products, device, small)
                quantities["share of the matrix rate"] = [case.flops / t / rate for t in times[case]]
                if device == "cuda" and case.products == "bfloat16" and (sheet := sheet_rate(card(device))):
                    quantities["MFU"] = [case.flops / t / sheet for t in times[case]]
            yield case, quantities | {name: [number] for name, number in found.get(case, {}).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; unset, all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="append to the ledger, and write the page")
    parser.add_argument("--page", action="store_true", help="only write the page from the ledger")
    parser.add_argument("--ledger", type=Path, default=ledger.LEDGER)
    args = parser.parse_args()
    if unknown := set(args.groups) - set(GROUPS):
        parser.error(f"there is no group {', '.join(sorted(unknown))}; choose from {', '.join(GROUPS)}")
    if args.page:
        ledger.write_page(args.ledger)
        return 0
    if args.device == "cpu":
        torch.set_num_threads(1)
    place, day = card(args.device), str(datetime.date.today())
    version = f"irdm {__version__}, PyTorch {torch.__version__}"
    failed = 0
    for group in args.groups or GROUPS:
        print(group, flush=True)
        entries = []
        try:
            for case, quantities in measure(group, args.device, args.small, args.repeats):
                for quantity, numbers in quantities.items():
                    spread = torch.tensor(numbers, dtype=torch.float64).quantile(torch.tensor(QUANTILES).double())
                    entries.append(
                        Entry(case.work, case.implementation, quantity, *spread.tolist(), place, day, version)
                    )
                    print("  " + ", ".join([*entries[-1][:3], *(f"{number:.3g}" for number in spread)]), flush=True)
        except Skip as reason:
            print(f"  skipped: {reason}", flush=True)
        except (RuntimeError, ValueError, OSError) as error:  # one group less, and the rest of a short hour on a card
            failed += 1
            print(f"  FAILED: {error}", flush=True)
        if args.record or args.ledger != ledger.LEDGER:
            ledger.append(entries, args.ledger)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    if args.record and args.ledger == ledger.LEDGER:
        ledger.write_page()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
