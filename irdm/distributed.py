"""Several processes as one: rows are divided, perhaps weights too; features are gathered, gradients summed.

Started by `torchrun`; alone, every operation is the identity. The gradient is that of one process, to rounding.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # its functions keep the group there is when they are made, and with it gloo's threads
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from irdm.ops.heartbeat import MEND, Heartbeat
from irdm.ops.rows import share_of
from irdm.ops.shards import divide, is_divided, mesh_of, own, whole

BUCKET = 2**26  # numbers of gradients in one message
PATIENCE = timedelta(days=1)  # how long ranks wait for one that fits encoders, builds a reference or judges alone
Result = TypeVar("Result")


class PeerLost(OSError):
    """Another rank failed or was killed."""


class Ranks:
    """This process among its peers. `torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; without them there is one.

    Every collective raises PeerLost when a peer is gone.
    """

    _entered = 0

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu") -> None:
        """Alone, unless told otherwise; `start` asks torchrun."""
        self.rank, self.size, self.device, self.divided = rank, size, device, False
        self._told: list[Exception] = []
        self._heart: Heartbeat | None = None
        self._mesh: Any = None

    @classmethod
    def start(cls, device: str) -> Ranks:
        """Join the process group that torchrun announces: NCCL on CUDA, gloo otherwise."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            backend = "nccl" if device.startswith("cuda") else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
            atexit.register(dist.destroy_process_group)  # gloo's threads abort a process that exits with them
        active = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size(), device) if active else cls(device=device)

    def __enter__(self) -> Ranks:
        """Inside, a rank that is killed, hangs or fails stops the others, and is named (`irdm.ops.heartbeat`)."""
        if self.size > 1:
            Ranks._entered += 1
            name = f"irdm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{Ranks._entered}"
            self._heart = Heartbeat(self.rank, self.size, name)
            self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        heart, self._heart = self._heart, None
        if heart is None:
            return
        lost = heart.lost() if isinstance(error, PeerLost) else None
        left = kind is None or issubclass(kind, SystemExit | KeyboardInterrupt)
        heart.stop(failed=not left and not isinstance(error, PeerLost), lost=isinstance(error, PeerLost))
        if isinstance(error, PeerLost):
            atexit.register(_end)
        if lost:
            raise PeerLost(f"Another rank is gone: {lost}. {MEND}") from None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's contiguous part of n rows; sizes differ by at most one and none is dropped or repeated."""
        return share_of(n, self.part)

    @property
    def part(self) -> tuple[int, int]:
        """(rank, size): which part of what is divided, of how many."""
        return self.rank, self.size

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """The n rows of all ranks in order, detached, of which each gives its `share(n)`: [n_rank, d] -> [n, d]."""
        if self.size == 1:
            return rows.detach()
        shares = [share_of(n, (rank, self.size)) for rank in range(self.size)]
        sizes = [share.stop - share.start for share in shares]
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        _call(dist.all_gather, parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, given to each, to the bit the same; differentiable.

        Its gradient is the sum of the ranks' gradients, so that a value which every rank computes counts `size` times.
        """
        return x if self.size == 1 else _Sum.apply(x)  # pyright: ignore[reportReturnType]

    def check(self, rollout: int, shard: bool) -> None:
        """Raises ValueError for a rollout that the ranks cannot share; divided weights want equal shares."""
        if rollout < self.size:
            raise ValueError(f"The rollout is {rollout}, but there are {self.size} ranks: one image each.")
        if shard and rollout % self.size:
            raise ValueError(
                f"The rollout is {rollout}, which {self.size} ranks do not share equally; while weights are divided "
                f"(--shard) each must draw as often. Take {rollout - rollout % self.size}."
            )

    def meet(self) -> None:
        """Agree on how weights will be divided: every rank must call this, before any calls `divide`."""
        if self.size > 1:
            self._mesh = mesh_of(self.device)

    def divide(self, modules: Sequence[nn.Module], name: str, rounded: torch.dtype | None = None) -> None:
        """Divide the parameters of modules over the ranks, the last holding the others; one rank keeps them whole.

        `rounded`: the type in which they are used, if another than their own. Ranks that met may do this one by one.
        Raises ValueError for a network, of this name, that names none.
        """
        if not modules:
            raise ValueError(f"The generator '{name}' cannot be divided over processes; leave --shard out.")
        if self.size > 1:
            divide(modules, self._mesh, rounded)
            self.divided = True

    def snapshot(self, groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """A copy of tensors by group and name in main memory: of divided ones each rank's own part, of others the main
        rank's.
        """
        return {
            group: {
                name: own(tensor).to("cpu", copy=True)
                for name, tensor in tensors.items()
                if self.is_main or is_divided(tensor)
            }
            for group, tensors in groups.items()
        }

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient with the sum over ranks, in messages of some size; divided ones are sums already."""
        if self.size == 1 or self.divided:
            return
        bucket: list[nn.Parameter] = []
        size = 0
        for parameter in parameters:
            bucket.append(parameter)
            size += parameter.numel()
            if size >= BUCKET:
                self._sum(bucket)
                bucket, size = [], 0
        if bucket:
            self._sum(bucket)

    def _sum(self, parameters: Sequence[nn.Parameter]) -> None:
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
        _call(dist.all_reduce, flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        value = torch.tensor([float(flag)], device=self.device)
        _call(dist.all_reduce, value, dist.ReduceOp.MAX)
        return bool(value.item())

    def read(self, numbers: Sequence[Tensor], flag: bool) -> tuple[list[float], bool, bool]:
        """Numbers of the device, alike on all ranks; whether all are finite everywhere; whether any rank's flag is set.

        This is where the host waits for the device, once.
        """
        told = torch.cat([whole(number.detach()).double().flatten() for number in numbers])
        flags = torch.stack([(~told.isfinite()).any().double(), torch.full_like(told[0], float(flag))])
        if self.size > 1:
            _call(dist.all_reduce, flags, dist.ReduceOp.MAX)
        *values, odd, flagged = torch.cat([told, flags]).tolist()
        return values, not odd, bool(flagged)

    def exchange(self, value: Result) -> list[Result]:
        """Every rank's value, in order: something small, sent as Python sends objects between its own processes."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        _call(dist.all_gather_object, values, value)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            _call(dist.barrier)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside the block on one rank ends all of them, and only that one says why. Blocks may nest."""
        try:
            yield
        except PeerLost:
            raise
        except Exception as error:
            if error not in self._told:  # the others leave at the innermost block, and would not hear it again
                self._told.append(error)
                self.any(True)
            raise
        if self.any(False):
            sys.exit(1)

    def in_turn(self, function: Callable[[], Result]) -> Result:
        """function() on one rank of a machine after another: what it holds for a while is held once.

        It must ask nothing of the other ranks.
        """
        result = None
        for turn in range(int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.size > 1 else 1):
            with self.together():
                if turn == (int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else 0):
                    result = function()
        return result  # type: ignore[return-value]

    def main_first(self, function: Callable[[], Result]) -> Result:
        """function() on the main rank, then on the others, which find in a cache what it made."""
        result = None
        for turn in (True, False):
            with self.together():
                if self.is_main == turn:
                    result = function()
        return result  # type: ignore[return-value]


ALONE = Ranks()
"""One process without peers: every collective is the identity."""


class _Sum(torch.autograd.Function):
    """A sum over ranks, which is its own adjoint."""

    @staticmethod
    def forward(ctx, x):
        total = x.contiguous().clone()
        _call(dist.all_reduce, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Sum.forward(ctx, gradient)


def _end() -> None:
    """End without waiting for gloo's threads, which may wait for the ranks that are gone for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _call(collective: Callable, *arguments):
    try:
        return collective(*arguments)
    except RuntimeError as error:
        raise PeerLost(
            f"Another rank failed or was killed; its own message says why ({error}).".splitlines()[0]
        ) from None
