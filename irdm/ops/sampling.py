"""Seeded draws: every random number of the library starts from a CPU generator made here.

CPU and CUDA generators give different numbers for one seed, so a draw is always made on the CPU and moved.
"""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Int
from torch import Tensor


def seed_for(*keys: int | str) -> int:
    """Mix integers and strings into one seed in [0, 2^63): nearby keys give unrelated seeds.

    Raises:
        ValueError: when no key is given.
    """
    if not keys:
        raise ValueError("seed_for() got no keys, expected at least one integer or string such as (seed, step).")
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(*keys: int | str) -> torch.Generator:
    """A fresh CPU generator seeded by `seed_for(*keys)`."""
    return torch.Generator().manual_seed(seed_for(*keys))


def sample_indices(population: int, count: int, generator: torch.Generator) -> Int[Tensor, " k"]:
    """`count` distinct indices below `population` in random order; all of them, in order, when `count` is enough."""
    if count >= population:
        return torch.arange(population)
    return torch.randperm(population, generator=generator)[:count]


NOISE_BLOCK = 256  # rows drawn from one generator


def normal_rows(rows: slice, shape: tuple[int, ...], *keys: int | str) -> Tensor:
    """Standard normal rows `[rows.stop - rows.start, *shape]` of an endless table that only the keys decide.

    Row i is the same whatever slice asks for it, so any micro-batch and any number of ranks see the same noise.
    """
    blocks = range(rows.start // NOISE_BLOCK, -(-rows.stop // NOISE_BLOCK))
    drawn = [torch.randn(NOISE_BLOCK, *shape, generator=generator_for(*keys, block)) for block in blocks]
    first = blocks.start * NOISE_BLOCK
    return torch.cat(drawn)[rows.start - first : rows.stop - first]


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """x on a device; the host does not wait until it has arrived on a GPU."""
    device = torch.device(device)
    if device.type == "cuda" and not x.is_cuda:
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


class RandomState:
    """The state of torch's global generators (CPU and the current CUDA device) when it was made."""

    def __init__(self) -> None:
        self.devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        self.cpu = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(device) for device in self.devices]

    def passed(self) -> bool:
        """Whether numbers have been drawn since."""
        now = RandomState()
        return any(not torch.equal(a, b) for a, b in zip([self.cpu, *self.cuda], [now.cpu, *now.cuda], strict=True))

    def replayed(self) -> _Replay:
        """A context in which draws repeat what followed this state; the outer stream goes on untouched afterwards."""
        return _Replay(self)


class _Replay:
    def __init__(self, state: RandomState):
        self.state = state

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng(devices=self.state.devices)
        self.fork.__enter__()
        torch.set_rng_state(self.state.cpu)
        for device, state in zip(self.state.devices, self.state.cuda, strict=True):
            torch.cuda.set_rng_state(state, device)

    def __exit__(self, *error) -> None:
        self.fork.__exit__(*error)
