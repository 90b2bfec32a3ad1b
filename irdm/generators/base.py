"""What every generator is: a network that turns noise and a condition into an image in one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from irdm.conditions import Conditions


class Generator(nn.Module):
    """`forward(noise [n, *noise_shape], **inputs) -> images [n, c, h, w]` in [0, 1], one network evaluation.

    `inputs` are the keyword tensors of `irdm.conditions.Conditions.inputs`: {"labels": [n]} for classes, {"captions":
    [n, b]} for prompts, none without a condition. All randomness is in the noise; dropout is replayed by the gradient
    cache.
    """

    noise_shape: tuple[int, ...]
    """Of the standard normal numbers that one image is drawn from."""

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training moves, by name: these alone are optimised, averaged, saved and restored.

        Whatever else the module holds (frozen parts, buffers) must come out of its `build` alike every time.
        """
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def divisible(self) -> list[nn.Module]:
        """Modules with all trained parameters, which may be divided over processes; one that holds others comes last.

        None, when the network cannot be divided.
        """
        return []

    @property
    def rounded(self) -> torch.dtype | None:
        """The type in which float32 weights are used, where a forward rounds every one of them: no more need be sent
        between processes (`--shard`). None, when they are used as they are.
        """
        return None

    @property
    def bytes_aside(self) -> int:
        """Of networks that are none of its modules, and that it loads when they are first needed."""
        return 0

    @property
    def built_on(self) -> dict[str, str]:
        """Hashes of what it was built from and training leaves as it is, by part: trained weights are worth nothing
        without. Empty, when there is no such part.
        """
        return {}

    def look_at(self, conditions: Conditions) -> list[str]:
        """What is worth saying of the conditions that it will be asked for, before training; nothing, as a rule.

        Raises ValueError when they cannot be drawn.
        """
        return []

    def condensed(self) -> Generator:
        """One that draws the same pictures with fewer numbers, for a page; itself where there is no way."""
        return self

    def written(self, conditions: Conditions) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
        """How a page draws it (`irdm.browser`): f(noise, **rows) -> images, and the rows of the conditions for f.

        f is made of operations on tensors alone; what a forward does before, such as reading text, is done here.
        """
        return self, conditions.inputs()

    def teacher(self, steps: int) -> Generator:
        """The model that it began from, drawing in so many steps. Raises ValueError when there is none."""
        raise ValueError("This generator began from no model that draws in steps; klein does.")

    def buffer_versions(self) -> dict[str, int]:
        """How often each buffer was written to."""
        return {name: buffer._version for name, buffer in self.named_buffers()}

    def check_buffers(self, versions: Mapping[str, int]) -> None:
        """Raises ValueError when a buffer was written to since: training must leave them alone, they are not saved."""
        if self.buffer_versions() != versions:
            raise ValueError(
                "A step changed buffers of the generator, such as the running statistics of a batch normalisation. "
                "Only trained parameters are saved, so that a resumed run would be another one: use a normalisation "
                "without running statistics."
            )
