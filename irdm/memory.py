"""How much memory there is, how much of it is free, and what a graph takes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor, nn

CGROUP = Path("/sys/fs/cgroup")


def physical_memory() -> int:
    """Bytes of memory that this machine, or the container it runs in, has."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(there, _cgroup("memory.max") or there)


def free_memory(device: torch.device | str) -> int:
    """Bytes that this process could still take: of the GPU, or its share of RAM among torchrun's processes here."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    free = int(found[1]) * 1024 if found else physical_memory() // 2
    limit = _cgroup("memory.max")
    if limit is not None:
        free = min(free, limit - (_cgroup("memory.current") or 0))
    return max(0, free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _cgroup(name: str) -> int | None:
    try:
        return int((CGROUP / name).read_text())
    except (OSError, ValueError):
        return None  # there is no such limit


class GraphMeter(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd saves for backward: each storage once, parameters not at all."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(owner, nn.Parameter):
            storage = tensor.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        """So far."""
        return sum(self.storages.values())


class GraphBudget:
    """Which rows keep their graphs: the first ones, as many as fit into `limit` bytes; of 0 none.

    Without a limit it is half of the memory that is free beside the first graph that is measured.
    """

    SHARE = 0.5

    def __init__(self, limit: int | None) -> None:
        self.limit, self.row_bytes = limit, 0.0

    def measure(self, rows: int, taken: int, device: torch.device) -> None:
        """The graph of some rows took so many bytes."""
        self.row_bytes = taken / rows
        if self.limit is None:
            self.limit = int(self.SHARE * (free_memory(device) + taken))

    def fits(self, rows: int) -> bool:
        """Whether so many rows may keep theirs."""
        return bool(self.limit) and self.row_bytes * rows <= self.limit
