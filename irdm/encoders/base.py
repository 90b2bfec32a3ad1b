"""What every encoder is: frozen, named, and differentiable in the images. A battery groups them.

Letters: n rows, c channels, h height, w width, d feature numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn


class Encoder(nn.Module):
    """A frozen feature extractor around `network`, which maps images [n, c, h, w] in [0, 1] to features [n, dim].

    It owns resizing, normalisation and pooling. Features are never normalised. Gradients flow to the images and to
    nothing else; it always stays in evaluation mode.
    """

    def __init__(self, name: str, dim: int, network: nn.Module):
        super().__init__()
        self.name, self.dim, self.network = name, dim, network
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        """Frozen: `mode` is ignored."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Features of images; raises ValueError naming the encoder when it turns finite images into NaN or infinity."""
        features = self.network(images)
        assert features.shape == (len(images), self.dim), f"{self.name}: {tuple(features.shape)}, dim {self.dim}"
        # Images that are not finite already are the generator's failure, and the trainer's to handle.
        if not features.isfinite().all() and images.isfinite().all():
            bad = int((~features.isfinite()).any(1).sum())
            raise ValueError(
                f"Encoder '{self.name}' returned NaN or infinity for {bad} of {len(images)} finite images. "
                "Its weights or its normalisation are broken: refit it, or take it out of the battery."
            )
        return features


class Battery(nn.Module):
    """Encoders by name, divided into those that train the generator and those that only judge it."""

    def __init__(self, encoders: Mapping[str, Encoder], held_in: Sequence[str], held_out: Sequence[str]):
        super().__init__()
        self.held_in, self.held_out = tuple(held_in), tuple(held_out)
        wanted = self.held_in + self.held_out
        if sorted(wanted) != sorted(encoders):
            raise ValueError(
                f"The battery has the encoders {sorted(encoders)}, but held_in and held_out name {sorted(wanted)}. "
                "Each encoder belongs to exactly one of the two."
            )
        self.encoders: dict[str, Encoder] = nn.ModuleDict({name: encoders[name] for name in wanted})  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Encoder:
        return self.encoders[name]
