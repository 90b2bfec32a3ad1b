"""The exponential moving average of a generator's trained parameters: the weights that sample and are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from irdm.ops.shards import divided_like, own


class EMA:
    """Averages of parameters by name, on their devices and divided as they are. With decay None it is off: the average
    is the parameter.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float | None):
        self.parameters, self.decay = dict(parameters), decay
        self.averages = {} if decay is None else {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters. The decay is at most (1 + step) / (10 + step), for a quick start."""
        if self.decay is not None:
            decay = min(self.decay, (1 + step) / (10 + step))
            averages = [own(average) for average in self.averages.values()]
            torch._foreach_lerp_(averages, [own(parameter) for parameter in self.parameters.values()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module draws with the averages inside the block, and with its own parameters again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name; the parameters when it is off."""
        return self.averages or {name: parameter.detach() for name, parameter in self.parameters.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        for name, average in self.averages.items():
            average.copy_(divided_like(tensors[name], average))

    def _swap(self) -> None:
        for name, average in self.averages.items():
            one, other = own(average), own(self.parameters[name])
            held = one.clone()
            one.copy_(other)
            other.copy_(held)
