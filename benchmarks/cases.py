"""What is measured of the losses and references: a function a group, which yields its cases for a device and a size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import plain
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.overrides import TorchFunctionMode

from irdm.distances import AnyDistance, Distance
from irdm.ops.embedding import kernel_means
from irdm.ops.gaussian import Moments
from irdm.ops.kernels import squared_mmd
from irdm.ops.kmeans import kmeans
from irdm.ops.radial import Gaussian
from irdm.ops.sampling import generator_for

Numbers = Sequence[Tensor] | None


@dataclass(frozen=True)
class Case:
    """An implementation of some work, done once by `run`."""

    work: str
    implementation: str
    run: Callable[[], Numbers] = lambda: None
    """Returns what it computed, value first, where that is to be compared."""
    flops: float = 0.0
    """Operations of matrix products; 0 where they are not what takes the time."""
    images: int = 0
    """Images of one run; 0 where there are none."""
    products: str = "float32"
    """float64, float32, TF32 or bfloat16: the type of matrix products, of whose rate this one has a share."""
    exact: Callable[[], Numbers] | None = None
    """The same numbers in float64."""
    clocked: Callable[[], list[float]] | None = None
    """In place of `run`: the seconds of several runs, by its own clock."""
    needs: str = "cpu"
    """`cuda` where it can run nowhere else."""


class Skip(Exception):
    """A case that cannot run here, and why."""


def value_and_gradient(loss: Callable[[Tensor], Tensor], fake: Tensor) -> tuple[Tensor, Tensor]:
    """Of a loss at generated rows."""
    fake = fake.detach().requires_grad_()
    value = loss(fake)
    return value.detach(), torch.autograd.grad(value, fake)[0]


@contextmanager
def tf32() -> Iterator[None]:
    """Matrix products of float32 in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Bfloat16Products(TorchFunctionMode):
    """Products of float32 matrices that are added to something take their factors in bfloat16, and sum in float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func not in (torch.addmm, torch.Tensor.addmm_):
            return func(*args, **kwargs)
        start, left, right = args
        if left.is_cuda:
            product = torch.mm(left.bfloat16(), right.bfloat16(), out_dtype=torch.float32)
        else:
            product = left.bfloat16().float() @ right.bfloat16().float()
        beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
        if func is torch.Tensor.addmm_:
            return start.mul_(beta).add_(product, alpha=alpha)
        return torch.add(start * beta, product, alpha=alpha, out=kwargs.get("out"))


def rows(count: int, width: int, name: str, device: str) -> Tensor:
    """Standard normal rows, generated ones a little apart from the real."""
    drawn = torch.randn(count, width, generator=generator_for("benchmark", name))
    return (drawn + 0.2 * (name == "fake")).to(device)


def mmd(device: str, small: bool) -> Iterator[Case]:
    """The Nystrom MMD in one blocked pass, by the type of its products, beside autograd and a compiler."""
    n, d, m = (512, 64, 256) if small else (5120, 1024, 4096)
    for bandwidths in (1, 4):
        fake, landmarks = rows(n, d, "fake", device), rows(m, d, "landmarks", device)
        alpha = rows(bandwidths, m, "alpha", device).abs() / m
        gammas = tuple(1 / (2 * 2 * d * 4.0**b) for b in range(bandwidths))

        def blocked(
            fake: Tensor = fake, within: Callable[[], AbstractContextManager] = nullcontext,
            about: tuple = (landmarks, alpha, gammas),
        ) -> Numbers:  # fmt: skip
            landmarks, alpha, gammas = about
            to = {"dtype": fake.dtype}
            with within():
                return value_and_gradient(
                    lambda x: squared_mmd(x, landmarks.to(**to), alpha.to(**to), Gaussian(gammas)), fake
                )

        def autograd(
            loss: Callable[..., Tensor], fake: Tensor = fake, about: tuple = (landmarks, alpha, gammas)
        ) -> Numbers:
            return value_and_gradient(lambda x: loss(x, *about), fake)

        of = partial(
            Case,
            f"Nystrom MMD, value and gradient: N = {n}, d = {d}, m = {m}, {bandwidths} bandwidth(s)",
            flops=3 * n * n * d + 4 * n * m * d,
            exact=lambda blocked=blocked, fake=fake: blocked(fake.double()),
        )
        yield of("one blocked pass", blocked)
        yield of("one blocked pass, TF32", partial(blocked, within=tf32), products="TF32", needs="cuda")
        rounded = partial(blocked, within=Bfloat16Products)
        on_card = {} if device == "cuda" else {"flops": 0}  # elsewhere factors are rounded, and multiplied in float32
        yield of("one blocked pass, bfloat16 products", rounded, products="bfloat16", **on_card)
        for chunk in (1024, 256):
            yield of(f"autograd, {chunk} rows at a time", partial(autograd, partial(plain.mmd, chunk=chunk)))
        yield of("autograd, whole", partial(autograd, plain.whole_mmd))
        compiled = torch.compile(plain.whole_mmd)
        yield of("torch.compile of the whole", partial(autograd, compiled), needs="cuda")


OPTIONS = {
    "nystrom-mmd": {"landmarks": 1024, "kmeans_iterations": 2, "constant_rows": 1024},
    "exact-mmd": {"constant_rows": 1024},
}


def distances(device: str, small: bool) -> Iterator[Case]:
    """Each of the six beside the same equation left to autograd, on the same reference."""
    n, d = (64, 16) if small else (4096, 256)
    for kind in plain.PLAIN:
        options = OPTIONS.get(kind, {}) | ({"landmarks": 32} if small and kind == "nystrom-mmd" else {})
        distance: Distance = TypeAdapter(AnyDistance).validate_python({"kind": kind, **options}).build()
        real = rows(2 * n, d, "real", device)
        distance.fit(real - real.mean(dim=0), seed=0)
        distance.center.zero_()  # to rounding it is: the plain versions need not subtract it
        distance, fake = distance.to(device), rows(n, d, "fake", device)
        versions = {
            "irdm": lambda x, distance=distance: distance(x, step=plain.STEP),
            "autograd": lambda x, kind=kind, distance=distance: plain.PLAIN[kind](x, distance),
        }
        for name, loss in versions.items():
            run = partial(value_and_gradient, loss, fake)
            other = partial(value_and_gradient, versions["autograd"], fake)
            work = f"{kind}, value and gradient: N = {n}, d = {d}"
            yield Case(work, name, run, exact=other if name == "irdm" else None)


def sliced(device: str, small: bool) -> Iterator[Case]:
    """SW_2 as evaluation asks for it: at the draw of the paper."""
    n, d = (256, 16) if small else (16_384, 1024)
    distance = TypeAdapter(AnyDistance).validate_python({"kind": "sliced-wasserstein"}).build()
    real, fake = rows(2 * n, d, "real", device), rows(n, d, "fake", device)
    distance.fit(real, seed=0).to(device)
    versions = {
        "irdm": partial(distance, step=plain.STEP),
        "autograd": lambda x: plain.PLAIN["sliced-wasserstein"](x, distance),
    }
    work = f"sliced Wasserstein, value and gradient: N = {n}, d = {d}, {distance.config.directions} directions"
    for name, loss in versions.items():
        yield Case(work, name, partial(value_and_gradient, loss, fake))


def references(device: str, small: bool) -> Iterator[Case]:
    """What a reference is fitted by."""
    n, d, k = (512, 32, 64) if small else (8192, 512, 1024)
    if device == "cuda" and not small:
        n, d, k = 65_536, 1024, 4096
    data, kernel = rows(n, d, "real", device), Gaussian([1 / (2 * d)])
    size = f"{n} rows, d = {d}"

    def centres() -> None:
        kmeans(data, k, torch.Generator().manual_seed(1), iterations=1)

    def embedded() -> None:
        kernel_means(data[:k], data.split(8192), kernel)

    def moments() -> None:
        Moments.of(data.split(8192))

    yield Case(f"k-means, an iteration: {size}, {k} centres", "irdm", centres, flops=2 * n * d * k)
    means = f"mean embedding: {size}, {k} landmarks"
    yield Case(means, "irdm", embedded, flops=2 * n * d * k, products="float64")
    yield Case(f"moments: {size}", "irdm, float64", moments)
