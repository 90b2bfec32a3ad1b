"""What a fitted distance keeps, and how it is saved and loaded."""

from __future__ import annotations

import json
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from irdm.config import Config


class Fitted(nn.Module):
    """A module that is fitted, not trained: its buffers, of whatever shape fitting gives, and its configuration.

    `.to()`, `state_dict()` and `load_state_dict()` work whatever was fitted. The saved state holds the configuration,
    and loads only into a module whose configuration computes the same.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config: Any = config

    def _apply(self, fn: Any, recurse: bool = True) -> Fitted:
        """Numbers stay in main memory: reading one waits for no GPU."""
        numbers = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and not buffer.ndim}
        super()._apply(fn, recurse)
        self._buffers.update(numbers)
        return self

    def get_extra_state(self) -> Tensor:
        """The configuration, as the bytes of its JSON: part of `state_dict`, and a tensor like the rest of it."""
        return torch.tensor(list(self.config.model_dump_json().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises ValueError when the state was fitted with another configuration; a field it lacks has its default."""
        fitted, own = json.loads(bytes(state.tolist())), self.config.model_dump(mode="json")
        try:
            read = type(self.config).model_validate(fitted)
            if read.identity() == self.config.identity():
                return
            fitted = read.model_dump(mode="json")
        except ValidationError:  # of another kind, or with a field that is no more
            pass
        differing = [name for name in {**fitted, **own} if fitted.get(name) != own.get(name)]
        found, expected = (", ".join(f"{name}={fields.get(name)}" for name in differing) for fields in (fitted, own))
        raise ValueError(
            f"The reference was fitted with {found}, but this distance is configured with {expected}: build the "
            "distance from the configuration of the reference, or fit it again."
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None:
                self._buffers[name] = torch.empty_like(saved, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
