"""The gradient cache: the exact gradient of a loss that couples a whole rollout, at one micro-batch of memory.

The loss is a function of all n feature rows at once, so adding up micro-batch losses would be wrong. By the chain rule
only the features couple the rows (Gao et al. 2021, arXiv 2101.06983):

    1. features of every micro-batch, without a graph;
    2. one gradient of the loss with respect to all features;
    3. each micro-batch again with a graph, fed its rows of that gradient.

Micro-batches whose graphs fit the memory budget keep them in pass 1, and need no second forward in pass 3.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Generate = Callable[[slice], Tensor]
FeatureGradients = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


@dataclass
class Chunk:
    """One micro-batch: its rows, the random state it starts from, and its graph when that is kept."""

    rows: slice
    random_state: RandomState
    images: Tensor | None = None
    leaf: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)


def accumulate_gradients(
    generate: Generate,
    encoders: Mapping[str, nn.Module],
    feature_gradients: FeatureGradients,
    n: int,
    micro_batch: int,
    *,
    idle: Collection[str] = (),
    graph_bytes: int = 0,
) -> int:
    """Add the gradient of the loss over n rows to the `.grad` of whatever `generate` depends on.

    Args:
        generate: rows -> images [len, c, h, w]. Any randomness comes from torch's global generators and is replayed.
        encoders: frozen modules, images -> features [len, d].
        feature_gradients: all features {name: [n, d]} -> gradients {name: [n, d]}. A name left out has weight 0, and
            its encoder is not run again.
        n, micro_batch: rows in all and at once; the last micro-batch may be smaller.
        idle: names that are known to be left out, so that pass 1 builds no graph for them.
        graph_bytes: budget for graphs kept between the passes; 0 keeps none. Whether one is kept changes no number.

    Returns:
        How many micro-batches kept their graph.

    Raises:
        ValueError: when n or micro_batch is not positive, or a gradient names an idle or unknown encoder.
    """
    if n < 1 or micro_batch < 1:
        raise ValueError(f"Got n = {n} and micro_batch = {micro_batch}; both must be at least 1.")
    chunks, bytes_per_row, kept_rows = [], None, 0
    for start in range(0, n, micro_batch):
        rows = slice(start, min(start + micro_batch, n))
        size = rows.stop - rows.start
        keep = graph_bytes > 0 and (bytes_per_row is None or bytes_per_row * (kept_rows + size) <= graph_bytes)
        chunk = Chunk(rows, RandomState())
        meter = GraphMeter()
        with torch.set_grad_enabled(keep), meter:
            images = generate(rows)
            leaf = images.detach().requires_grad_(keep)
            for name, encoder in encoders.items():
                with torch.set_grad_enabled(keep and name not in idle):
                    chunk.features[name] = encoder(leaf)
        if keep and bytes_per_row is None:
            bytes_per_row = meter.bytes / size
            keep = meter.bytes <= graph_bytes
        if keep:
            chunk.images, chunk.leaf = images, leaf
            kept_rows += size
        else:
            chunk.features = {name: feature.detach() for name, feature in chunk.features.items()}
        chunks.append(chunk)

    features = {name: torch.cat([chunk.features[name].detach() for chunk in chunks]) for name in encoders}
    for chunk in chunks:
        if chunk.images is None:
            chunk.features = {}
    gradients = feature_gradients(features)
    if wrong := [name for name in gradients if name not in encoders or name in idle]:
        raise ValueError(f"Gradients came for {wrong}, which are idle or not among the encoders {list(encoders)}.")
    if not gradients:
        return sum(chunk.images is not None for chunk in chunks)

    for chunk in chunks:
        if chunk.images is not None and chunk.leaf is not None:
            for name, gradient in gradients.items():
                chunk.features.pop(name).backward(gradient[chunk.rows])
            chunk.images.backward(chunk.leaf.grad)
            chunk.features = {}
            continue
        with chunk.random_state.replayed():
            images = generate(chunk.rows)
            leaf = images.detach().requires_grad_()
            for name, gradient in gradients.items():  # one encoder's graph at a time
                encoders[name](leaf).backward(gradient[chunk.rows])
        images.backward(leaf.grad)
    return sum(chunk.images is not None for chunk in chunks)


class RandomState:
    """The state of torch's global generators (CPU and the current CUDA device) when it was made."""

    def __init__(self) -> None:
        self.devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        self.cpu = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(device) for device in self.devices]

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
        return sum(self.storages.values())
