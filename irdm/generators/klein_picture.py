"""A transformer of klein that tells the picture, for small ones: import it where diffusers may be imported.

Letters: n images of t tokens of k numbers.
"""

from __future__ import annotations

from typing import Any

from diffusers import Flux2Transformer2DModel, ModelMixin
from jaxtyping import Float
from torch import Tensor

__all__ = ["ModelMixin", "PictureTransformer"]  # the first is where diffusers looks what kind of part the other is


class PictureTransformer(Flux2Transformer2DModel):
    """diffusers' own, but its last layer tells the picture x, and the velocity (z - x) / t is made of that.

    A velocity holds the noise itself, of which a narrow network that normalises its tokens leaves a trace in every
    picture; see docs/log.md. What samplers get is a velocity, as from any other. Source: Li and He (2025), arXiv
    2511.13720.
    """

    def forward(  # type: ignore[override]
        self, hidden_states: Float[Tensor, "n t k"], *, timestep: Float[Tensor, " n"], **more: Any
    ) -> tuple[Float[Tensor, "n t k"]]:
        """(velocity,), at times above 0."""
        given: dict[str, Any] = {**more, "timestep": timestep, "return_dict": False}
        picture = super().forward(hidden_states, **given)[0]
        return ((hidden_states - picture) / timestep[:, None, None],)
