"""Pieces of work side by side on a CPU, one thread each.

Threads that share every product wait for each other at its end, and where tensors are small they mostly wait. Whole
pieces of a batch, each computed from end to end by one thread, keep all cores busy; torch's operators let go of the
interpreter while they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """As many threads as torch had when this was made, in each of which it computes with one."""

    def __init__(self) -> None:
        self.count = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, "workers", initializer=torch.set_num_threads, initargs=(1,))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The function of each item, in their order; what it raises is raised.

        Threads know nothing of the caller's `torch.no_grad`, autocast and the like.
        """
        torch.set_num_threads(1)  # OpenMP asks the thread how many to use, MKL the process
        try:
            return list(self._pool.map(function, items))
        finally:
            torch.set_num_threads(self.count)
