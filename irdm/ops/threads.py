"""How parts of a micro-batch, or what several encoders need, is computed: in turn, or side by side in threads of a CPU.

Parts that one thread each computes from end to end take less time together than products that all threads share, where
networks have many small ones; docs/log.md has what was measured. Torch's operators let go of the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor, nn

from irdm.ops.rows import share_of
from irdm.ops.sampling import RandomState

PART = 32  # rows that keep a thread busy
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def ending() -> Iterator[Event]:
    """An event that is set when the block fails or is interrupted: threads that look at it stop too."""
    ended = Event()
    try:
        yield ended
    except BaseException:
        ended.set()
        raise


class InTurn:
    """Whole micro-batches, each computed by all of torch's threads; gradients go where `backward` puts them."""

    def parts(self, rows: slice) -> list[slice]:
        """What is computed at once, in order."""
        return [rows]

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The function of each item, in their order; what it raises is raised."""
        return [function(item) for item in items]

    def replay(self, state: RandomState) -> AbstractContextManager:
        """A context in which a part may be computed again from this state."""
        return state.replayed()

    def back(self, y: Tensor, gradient: Tensor | None) -> Sequence[Tensor | None]:
        """Take the gradient of y to the parameters; what `add` is still to add, for each of them."""
        y.backward(gradient)
        return ()

    def add(self, gradients: Iterable[Sequence[Tensor | None]]) -> None:
        """Add what `back` returned for each part, in order."""


class SideBySide(InTurn):
    """One part, or another item, in each thread that torch had when this was made. Sums are in one order all the same.

    Threads know nothing of the caller's `torch.no_grad`, autocast and the like.
    """

    def __init__(self, parameters: Sequence[nn.Parameter] = ()) -> None:
        """`parameters`: all that get a gradient from `add`; their hooks are not called."""
        self.parameters, self.count = list(parameters), torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, "parts", initializer=torch.set_num_threads, initargs=(1,))

    def parts(self, rows: slice) -> list[slice]:
        size = rows.stop - rows.start
        count = max(1, min(self.count, size // PART))
        shares = (share_of(size, (part, count)) for part in range(count))
        return [slice(rows.start + share.start, rows.start + share.stop) for share in shares]

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        items = list(items)
        if min(len(items), self.count) < 2:
            return super().map(function, items)
        torch.set_num_threads(1)  # OpenMP asks the thread how many to use, MKL the process
        try:
            return list(self._pool.map(function, items))
        finally:
            torch.set_num_threads(self.count)

    def replay(self, state: RandomState) -> AbstractContextManager:
        return nullcontext()  # parts draw nothing

    def back(self, y: Tensor, gradient: Tensor | None) -> Sequence[Tensor | None]:
        return torch.autograd.grad(y, self.parameters, gradient, allow_unused=True)

    def add(self, gradients: Iterable[Sequence[Tensor | None]]) -> None:
        for part in gradients:
            for parameter, gradient in zip(self.parameters, part, strict=True):
                if gradient is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad += gradient


def arrangement(parameters: Sequence[nn.Parameter]) -> InTurn:
    """Side by side where there are parameters, all on the CPU, and several threads; else in turn."""
    return SideBySide(parameters) if parameters and torch.get_num_threads() > 1 else InTurn()
