"""The gradient cache: the exact gradient of a loss that couples a whole rollout, at one micro-batch of memory.

The loss is a function of all n feature rows at once, so adding up micro-batch losses would be wrong. By the chain rule
only the features couple the rows (Gao et al. 2021, arXiv 2101.06983):

    features = cache.forward(...)     pass 1: features of every micro-batch, without a graph
    gradients = ...                   pass 2: one gradient of the loss with respect to all features
    cache.backward(gradients)         pass 3: each micro-batch again with a graph, fed its rows of that gradient

Micro-batches whose graphs fit the memory budget keep them in pass 1, and need no second forward in pass 3. Whether one
is kept changes no number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irdm.memory import GraphMeter, free_memory
from irdm.ops.sampling import RandomState

Generate = Callable[[slice], Tensor]
SHARE = 0.5  # of the memory that is free after the first micro-batch, when no budget is given


@dataclass
class Chunk:
    """One micro-batch: its rows, the random state it starts from, its features and, when kept, their graph."""

    rows: slice
    random_state: RandomState
    features: dict[str, Tensor]
    images: Tensor | None = None
    leaf: Tensor | None = None


class GradientCache:
    """Adds the gradient of a loss over a rollout to the `.grad` of whatever draws the images."""

    def __init__(self, encoders: Mapping[str, nn.Module], micro_batch: int, budget: int | None = None):
        """`encoders`: frozen, images -> features [k, d]. `micro_batch`: rows at once; the last one may be smaller.

        `budget`: bytes for graphs kept between the passes; 0 keeps none, and None takes half of the memory that is free
        once the first micro-batch of the first rollout is there. Raises ValueError for a micro-batch below 1.
        """
        if micro_batch < 1:
            raise ValueError(f"The micro-batch is {micro_batch}; it must be at least 1.")
        self.encoders, self.micro_batch, self.budget = dict(encoders), micro_batch, budget
        self.row_bytes: float | None = None
        self.chunks: list[Chunk] = []

    def forward(self, generate: Generate, n: int, idle: Collection[str] = ()) -> dict[str, Tensor]:
        """The features {encoder: [n, d]} of a rollout of n rows, detached.

        `generate`: rows -> images [k, c, h, w]; any randomness comes from torch's global generators and is replayed.
        `idle`: encoders whose features will get no gradient, and need no graph.
        """
        self.generate, self.idle = generate, set(idle)
        self.chunks, found, kept_rows = [], [], 0
        for start in range(0, n, self.micro_batch):
            rows = slice(start, min(start + self.micro_batch, n))
            size = rows.stop - rows.start
            fits = self.row_bytes is None or self.row_bytes * (kept_rows + size) <= (self.budget or 0)
            keep = fits and self.budget != 0
            chunk = Chunk(rows, RandomState(), {})
            meter = GraphMeter()
            with torch.set_grad_enabled(keep), meter:
                images = generate(rows)
                leaf = images.detach().requires_grad_(keep)
                for name, encoder in self.encoders.items():
                    with torch.set_grad_enabled(keep and name not in self.idle):
                        chunk.features[name] = encoder(leaf)
            if keep and self.row_bytes is None:
                self.row_bytes = meter.bytes / size
                if self.budget is None:
                    self.budget = int(SHARE * (free_memory(images.device) + meter.bytes))
                keep = meter.bytes <= self.budget
            found.append({name: feature.detach() for name, feature in chunk.features.items()})
            if keep:
                chunk.images, chunk.leaf, kept_rows = images, leaf, kept_rows + size
            else:
                chunk.features = {}
            self.chunks.append(chunk)
        return {name: torch.cat([features[name] for features in found]) for name in self.encoders}

    def backward(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the gradient of the loss, given that of the features {encoder: [n, d]}; encoders left out have none.

        Raises ValueError when a gradient names an idle or unknown encoder.
        """
        if wrong := [name for name in gradients if name not in self.encoders or name in self.idle]:
            raise ValueError(f"Gradients came for {wrong}, which are idle or not among {list(self.encoders)}.")
        chunks, self.chunks = self.chunks, []
        for chunk in chunks if gradients else ():
            if chunk.images is not None and chunk.leaf is not None:
                for name, gradient in gradients.items():
                    chunk.features.pop(name).backward(gradient[chunk.rows])
                chunk.images.backward(chunk.leaf.grad)
                chunk.images = chunk.leaf = None
                chunk.features = {}
                continue
            with chunk.random_state.replayed():
                images = self.generate(chunk.rows)
                leaf = images.detach().requires_grad_()
                for name, gradient in gradients.items():  # one encoder's graph at a time
                    self.encoders[name](leaf).backward(gradient[chunk.rows])
            images.backward(leaf.grad)
