"""The gradient cache: the exact gradient of a loss that couples a whole rollout, at one micro-batch of memory.

The loss is a function of all n feature rows at once, so adding up micro-batch losses would be wrong. By the chain rule
only the features couple the rows (Gao et al. 2021, arXiv 2101.06983):

    features = cache.forward(...)     pass 1: features of every micro-batch, without a graph
    gradients = ...                   pass 2: one gradient of the loss with respect to all features
    cache.backward(gradients)         pass 3: each micro-batch again with a graph, fed its rows of that gradient

Micro-batches whose graphs fit the memory budget keep them, and need no second forward pass, which changes no number.
On a CPU parts of a micro-batch are computed side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from irdm.memory import GraphBudget, GraphMeter
from irdm.ops.sampling import RandomState
from irdm.ops.threads import InTurn, arrangement

Generate = Callable[[slice], Tensor]
Encoders = Mapping[str, nn.Module]
Parameters = Sequence[nn.Parameter]


@dataclass
class Chunk:
    """A micro-batch or a part of one: its rows and where their random numbers start; images, leaf, features if kept."""

    rows: slice
    keep: bool
    random_state: RandomState = field(default_factory=RandomState)
    graph: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None


class GradientCache:
    """Adds the gradient of a loss over a rollout to the `.grad` of whatever draws the images."""

    def __init__(self, encoders: Encoders, micro_batch: int, budget: int | None = None, side_by_side: Parameters = ()):
        """`encoders`: frozen, images -> features [k, d]. `micro_batch`: rows at once; the last one may be smaller.

        `budget`: bytes for graphs kept between the passes; 0 keeps none, and None takes half of the memory that is free
        once a first micro-batch was tried.

        `side_by_side`: all parameters that get a gradient, on the CPU; their hooks are not called. Given them, each of
        torch's threads computes a part of a micro-batch (`irdm.ops.threads`), unless drawing images takes random
        numbers, as dropout does. Raises ValueError for a micro-batch below 1.
        """
        if micro_batch < 1:
            raise ValueError(f"The micro-batch is {micro_batch}; it must be at least 1.")
        self.encoders, self.micro_batch, self.budget = dict(encoders), micro_batch, GraphBudget(budget)
        self.order, self.tried = arrangement(side_by_side), False
        self.micro_batches: list[list[Chunk]] = []

    def forward(self, generate: Generate, n: int, idle: Collection[str] = ()) -> dict[str, Tensor]:
        """The features {encoder: [n, d]} of a rollout of n rows, detached.

        `generate`: rows -> images [k, c, h, w]; any randomness comes from torch's global generators and is replayed.
        `idle`: encoders whose features will get no gradient, and need no graph.
        """
        self.generate, self.idle, self.micro_batches, found = generate, set(idle), [], []
        for start in range(0, n, self.micro_batch):
            rows = slice(start, min(start + self.micro_batch, n))
            if not self.tried:
                self._try(self.order.parts(rows)[0])
            chunks = [Chunk(part, keep=self.budget.fits(part.stop)) for part in self.order.parts(rows)]
            found += self.order.map(self._look, chunks)
            self.micro_batches.append(chunks)
        return {name: torch.cat([features[name] for features in found]) for name in self.encoders}

    def backward(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the gradient of the loss, given that of the features {encoder: [n, d]}; encoders left out have none.

        Raises ValueError when a gradient names an idle or unknown encoder.
        """
        if wrong := [name for name in gradients if name not in self.encoders or name in self.idle]:
            raise ValueError(f"Gradients came for {wrong}, which are idle or not among {list(self.encoders)}.")
        for chunks in self.micro_batches if gradients else ():
            self.order.add(self.order.map(lambda chunk: self._back(chunk, gradients), chunks))
        self.micro_batches = []

    def _try(self, rows: slice) -> None:
        """What a row's graph takes, and whether rows draw random numbers, which come in one order."""
        chunk, meter, self.tried = Chunk(rows, keep=self.budget.limit != 0), GraphMeter(), True
        with chunk.random_state.replayed(), meter:
            device = next(iter(self._look(chunk).values())).device
            self.order = InTurn() if chunk.random_state.passed() else self.order
        self.budget.measure(rows.stop - rows.start, meter.bytes, device)

    def _look(self, chunk: Chunk) -> dict[str, Tensor]:
        """The features of a chunk, detached; their graph stays with it if it is to be kept."""
        features = {}
        with torch.set_grad_enabled(chunk.keep):
            images = self.generate(chunk.rows)
            leaf = images.detach().requires_grad_(chunk.keep)
            for name, encoder in self.encoders.items():
                with torch.set_grad_enabled(chunk.keep and name not in self.idle):
                    features[name] = encoder(leaf)
        if chunk.keep:
            chunk.graph = images, leaf, features
        return {name: feature.detach() for name, feature in features.items()}

    def _back(self, chunk: Chunk, gradients: Mapping[str, Tensor]) -> Sequence[Tensor | None]:
        """A chunk's part of the gradient, from its graph or one that is made now."""
        if chunk.graph:
            (images, leaf, features), chunk.graph = chunk.graph, None
            for name, gradient in gradients.items():
                features.pop(name).backward(gradient[chunk.rows])
        else:
            with self.order.replay(chunk.random_state):
                images = self.generate(chunk.rows)
                leaf = images.detach().requires_grad_()
                for name, gradient in gradients.items():  # one encoder's graph at a time
                    self.encoders[name](leaf).backward(gradient[chunk.rows])
        return self.order.back(images, leaf.grad)
