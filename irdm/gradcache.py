"""The gradient cache: the exact gradient of a loss that couples a whole rollout, at one micro-batch of memory.

The loss is a function of all n feature rows at once, so adding up micro-batch losses would be wrong. By the chain rule
only the features couple the rows (Gao et al. 2021, arXiv 2101.06983):

    features = cache.forward(...)     pass 1: features of every micro-batch, without a graph
    gradients = ...                   pass 2: one gradient of the loss with respect to all features
    cache.backward(gradients)         pass 3: each micro-batch again with a graph, fed its rows of that gradient

Micro-batches whose graphs fit the memory budget keep them in pass 1, and need no second forward in pass 3. Whether one
is kept changes no number. On a CPU a micro-batch may be computed in parts, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from irdm.memory import GraphMeter, free_memory
from irdm.ops.rows import share_of
from irdm.ops.sampling import RandomState
from irdm.ops.threads import Workers

Generate = Callable[[slice], Tensor]
Result = TypeVar("Result")
PART = 32  # rows that keep a thread busy
SHARE = 0.5  # of the memory that is free after the first micro-batch, when no budget is given


@dataclass
class Chunk:
    """A part of a micro-batch, or all of it: the state that random numbers of it start from; its graph, when kept."""

    rows: slice
    keep: bool = False
    features: dict[str, Tensor] = field(default_factory=dict)
    random_state: RandomState = field(default_factory=RandomState)
    images: Tensor | None = None
    leaf: Tensor | None = None

    @property
    def size(self) -> int:
        return self.rows.stop - self.rows.start


class GradientCache:
    """Adds the gradient of a loss over a rollout to the `.grad` of whatever draws the images."""

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        micro_batch: int,
        budget: int | None = None,
        side_by_side: Sequence[nn.Parameter] = (),
    ):
        """`encoders`: frozen, images -> features [k, d]. `micro_batch`: rows at once; the last one may be smaller.

        `budget`: bytes for graphs kept between the passes; 0 keeps none, and None takes half of the memory that is free
        once a first micro-batch was tried.

        `side_by_side`: the parameters that get a gradient, on the CPU. Given them, each of torch's threads computes a
        part of a micro-batch (`irdm.ops.threads`), and hooks of theirs are not called. A generator that draws random
        numbers, as dropout does, still computes its micro-batches whole: they come in one order.

        Raises ValueError for a micro-batch below 1.
        """
        if micro_batch < 1:
            raise ValueError(f"The micro-batch is {micro_batch}; it must be at least 1.")
        self.encoders, self.micro_batch, self.budget = dict(encoders), micro_batch, budget
        self.parameters = list(side_by_side)
        self.workers = Workers() if side_by_side and torch.get_num_threads() > 1 else None
        self.row_bytes: float | None = None
        self.micro_batches: list[list[Chunk]] = []

    def forward(self, generate: Generate, n: int, idle: Collection[str] = ()) -> dict[str, Tensor]:
        """The features {encoder: [n, d]} of a rollout of n rows, detached.

        `generate`: rows -> images [k, c, h, w]; any randomness comes from torch's global generators and is replayed.
        `idle`: encoders whose features will get no gradient, and need no graph.
        """
        self.generate, self.idle, self.micro_batches = generate, set(idle), []
        kept = 0
        for start in range(0, n, self.micro_batch):
            rows = slice(start, min(start + self.micro_batch, n))
            if self.row_bytes is None:
                self._measure(self._parts(rows)[0])
            chunks = self._parts(rows)
            for chunk in chunks:
                chunk.keep = self.row_bytes * (kept + chunk.size) <= (self.budget or 0)
                kept += chunk.size * chunk.keep
            self._each(self._look, chunks)
            self.micro_batches.append(chunks)
        every = [chunk for chunks in self.micro_batches for chunk in chunks]
        features = {name: torch.cat([chunk.features[name].detach() for chunk in every]) for name in self.encoders}
        for chunk in every:
            if not chunk.keep:
                chunk.features.clear()
        return features

    def backward(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the gradient of the loss, given that of the features {encoder: [n, d]}; encoders left out have none.

        Raises ValueError when a gradient names an idle or unknown encoder.
        """
        if wrong := [name for name in gradients if name not in self.encoders or name in self.idle]:
            raise ValueError(f"Gradients came for {wrong}, which are idle or not among {list(self.encoders)}.")
        micro_batches, self.micro_batches = self.micro_batches, []
        for chunks in micro_batches if gradients else ():
            for found in self._each(lambda chunk: self._back(chunk, gradients), chunks):
                _add(self.parameters, found)

    def _measure(self, chunk: Chunk) -> None:
        """Try one: what a row of its graph takes, and whether drawing it takes random numbers."""
        chunk.keep, meter = self.budget != 0, GraphMeter()
        with chunk.random_state.replayed():
            with meter:
                self._look(chunk)
            if chunk.random_state.passed():
                self.workers = None
        self.row_bytes = meter.bytes / chunk.size if chunk.keep else math.inf
        if self.budget is None:
            device = next(iter(chunk.features.values())).device
            self.budget = int(SHARE * (free_memory(device) + meter.bytes))

    def _parts(self, rows: slice) -> list[Chunk]:
        """A micro-batch, in as many parts as will be computed side by side."""
        size = rows.stop - rows.start
        count = 1 if self.workers is None else max(1, min(self.workers.count, size // PART))
        shares = (share_of(size, (part, count)) for part in range(count))
        return [Chunk(slice(rows.start + share.start, rows.start + share.stop)) for share in shares]

    def _each(self, work: Callable[[Chunk], Result], chunks: list[Chunk]) -> list[Result]:
        """Of several one in each thread; of a single one all threads compute every product."""
        return self.workers.map(work, chunks) if len(chunks) > 1 and self.workers else [work(each) for each in chunks]

    def _look(self, chunk: Chunk) -> None:
        """The features of a chunk, and their graph if it is to be kept."""
        with torch.set_grad_enabled(chunk.keep):
            images = self.generate(chunk.rows)
            leaf = images.detach().requires_grad_(chunk.keep)
            for name, encoder in self.encoders.items():
                with torch.set_grad_enabled(chunk.keep and name not in self.idle):
                    chunk.features[name] = encoder(leaf)
        if chunk.keep:
            chunk.images, chunk.leaf = images, leaf

    def _back(self, chunk: Chunk, gradients: Mapping[str, Tensor]) -> Sequence[Tensor | None]:
        """Add a chunk's part of the gradient; or return it, for the parameters in order, where it is one of several."""
        images, leaf = chunk.images, chunk.leaf
        if images is not None and leaf is not None:
            for name, gradient in gradients.items():
                chunk.features.pop(name).backward(gradient[chunk.rows])
            chunk.images = chunk.leaf = None
            chunk.features.clear()
        else:
            with nullcontext() if self.workers else chunk.random_state.replayed():
                images = self.generate(chunk.rows)
                leaf = images.detach().requires_grad_()
                for name, gradient in gradients.items():  # one encoder's graph at a time
                    self.encoders[name](leaf).backward(gradient[chunk.rows])
        if self.workers:
            return torch.autograd.grad(images, self.parameters, leaf.grad, allow_unused=True)
        images.backward(leaf.grad)
        return ()


def _add(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """As `backward` would: into a tensor of the parameter's own."""
    for parameter, gradient in zip(parameters, gradients, strict=False):
        if gradient is not None and parameter.grad is None:
            parameter.grad = gradient.clone()
        elif gradient is not None:
            parameter.grad += gradient
