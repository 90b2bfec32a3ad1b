"""Pixel MeanFlow: a transformer over pixel patches that draws an image in one evaluation.

Source: Lu et al., arXiv 2601.22158; docs/method.md has the equations. Attributes are named as in the released files.

Letters: n images; c channels, h height, w width; p patch; s tokens of a sequence, d numbers each; a heads of k numbers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from irdm.conditions import Spec, class_count
from irdm.config import Config, free
from irdm.generators.base import Generator
from irdm.generators.pmf_weights import load_weights

SINUSOIDS = 256  # cosines and sines of an embedded number
LONGEST_PERIOD = 10000.0  # of the sinusoids and of the rotations, in units of 2 pi
SMALLEST_TIME = 0.05  # the velocity (z - x) / t is not divided by less


class PixelMeanFlowConfig(Config):
    """A transformer over pixel patches (pixel MeanFlow). The defaults are tiny; `PMF_FAMILIES` has B, L and H."""

    kind: Literal["pmf"] = "pmf"
    """Name of this kind of generator."""
    width: int = Field(default=64, ge=4, le=2**20)
    """Numbers a token; a multiple of 4 * heads."""
    depth: int = Field(default=4, ge=1, le=2**12)
    """Transformer blocks in all."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of a block."""
    head_depth: int = Field(default=2, ge=0)
    """How many of the blocks, the last ones, belong to the output head; they are only named otherwise."""
    patch: int = Field(default=2, ge=1)
    """Pixels along a side of a square patch; it divides the height and the width of the images."""
    bottleneck: int = Field(default=32, ge=1)
    """Numbers that a patch is first projected to."""
    class_tokens: int = Field(default=2, ge=1)
    """Tokens that carry the class."""
    guidance_tokens: int = Field(default=1, ge=1)
    """Tokens that carry the strength of guidance."""
    interval_tokens: int = Field(default=1, ge=1)
    """Tokens that carry each end of the guidance interval."""
    time_tokens: int = Field(default=1, ge=1)
    """Tokens that carry the length of a step."""

    guidance: float = Field(default=7.0, ge=1)
    """Strength of guidance the network is told, an input and not a second evaluation; 1 is none."""
    interval: tuple[float, float] = (0.2, 0.6)
    """Times from and to which guidance holds, which the network is told too."""

    weights: Path | None = None
    """A .safetensors, .pth or .pt file to start from; unset starts from nothing."""
    weights_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """The sha256 that file must have; unset takes any."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the blocks; weights, embeddings and pixels stay float32."""
    gradient_checkpointing: bool = free(False)
    """Recompute each block in the backward pass: the same gradient in less memory and a third more time."""

    @model_validator(mode="after")
    def _fits(self) -> PixelMeanFlowConfig:
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width is {self.width} with {self.heads} heads; each head needs a multiple of 4 numbers (pairs for "
                f"rows and for columns), so make width a multiple of {4 * self.heads}."
            )
        if self.head_depth > self.depth:
            raise ValueError(f"head_depth is {self.head_depth} but there are {self.depth} blocks in all; lower it.")
        if not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError(f"interval is {self.interval}; expected two times in order between 0 and 1.")
        if self.weights_sha256 and not self.weights:
            raise ValueError("weights_sha256 is given without weights; name the file it belongs to.")
        return self

    def build(self, image_shape: tuple[int, int, int], spec: Spec) -> PixelMeanFlow:
        """The network, freshly initialised (the caller seeds torch) or from `weights`; on the meta device shapes only.

        Raises:
            ValueError: when the patch does not divide the image, or `weights` is absent, damaged or of another network.
        """
        _, height, width = image_shape
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"The images are {height}x{width} and the patch {self.patch}, which does not divide both; choose a "
                f"patch that divides {math.gcd(height, width)}."
            )
        generator = PixelMeanFlow(self, image_shape, class_count(spec, self.kind))
        if self.weights and not generator.net.pos_embed.is_meta:
            load_weights(generator, self.weights, self.weights_sha256)
        return generator


def _published(width: int, depth: int, heads: int, bottleneck: int) -> PixelMeanFlowConfig:
    return PixelMeanFlowConfig(
        width=width,
        depth=depth,
        heads=heads,
        bottleneck=bottleneck,
        head_depth=8,
        patch=16,
        class_tokens=8,
        guidance_tokens=4,
        interval_tokens=2,
        time_tokens=4,
    )


PMF_FAMILIES = {
    "tiny": PixelMeanFlowConfig(),
    "B": _published(width=768, depth=16, heads=12, bottleneck=128),
    "L": _published(width=1024, depth=32, heads=16, bottleneck=128),
    "H": _published(width=1280, depth=48, heads=16, bottleneck=256),
}
"""The published sizes, for images of 256x256, and a tiny one."""


class PixelMeanFlow(Generator):
    """`forward(noise [n, c, h, w], labels [n] or None) -> images [n, c, h, w]` in [0, 1].

    Without a condition every image is of the null class.
    """

    def __init__(self, config: PixelMeanFlowConfig, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.noise_shape, self.null = tuple(image_shape), num_classes
        self.guidance, self.interval = config.guidance, config.interval
        self.net = PixelTransformer(config, image_shape, num_classes)

    def forward(
        self, noise: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """One network evaluation. A pixel that leaves the range keeps the part of its gradient that leads back in."""
        return to_unit_range((self.sample(noise, labels) + 1) / 2)

    def sample(
        self, noise: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None, steps: int = 1
    ) -> Float[Tensor, "n c h w"]:
        """Images in about [-1, 1], not clamped, from `steps` equal steps z <- z - h u from time 1 to 0.

        u = (z - x) / max(t, 0.05), x the image the network predicts: one step is that prediction itself. The noise is
        standard normal and taken as it is.
        """
        z, h = noise, 1 / steps
        if labels is None:
            labels = torch.full((len(noise),), self.null, device=noise.device)
        for i in range(steps):
            x = self.net(z, labels, h, self.guidance, self.interval)
            z = z - h * (z - x) / max(1 - i * h, SMALLEST_TIME)
        return z


class PixelTransformer(nn.Module):
    """Tokens [class | guidance | interval start | interval end | time | patches] -> the predicted image.

    The class `num_classes` is the null class of guided training. The released networks' second head, which only
    training by MeanFlow evaluates, is not built.
    """

    def __init__(self, config: PixelMeanFlowConfig, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        channels, height, width = image_shape
        d, p = config.width, config.patch
        self.patch, self.grid, self.head_width = p, (height // p, width // p), d // config.heads
        self.autocast, self.checkpointing = config.precision == "bfloat16", config.gradient_checkpointing

        self.time_tokens = _tokens(config.time_tokens, d)
        self.class_tokens = _tokens(config.class_tokens, d)
        self.omega_tokens = _tokens(config.guidance_tokens, d)
        self.t_min_tokens = _tokens(config.interval_tokens, d)
        self.t_max_tokens = _tokens(config.interval_tokens, d)
        self.prefix = config.class_tokens + config.guidance_tokens + 2 * config.interval_tokens + config.time_tokens
        self.pos_embed = nn.Parameter(torch.randn(1, self.prefix + math.prod(self.grid), d) * 0.02)

        self.x_embedder = _named(
            proj1=nn.Conv2d(channels, config.bottleneck, p, stride=p), proj2=nn.Conv2d(config.bottleneck, d, 1)
        )
        self.h_embedder = NumberEmbedder(d)
        self.omega_embedder = NumberEmbedder(d)
        self.cfg_t_start_embedder = NumberEmbedder(d)
        self.cfg_t_end_embedder = NumberEmbedder(d)
        table = nn.Embedding(num_classes + 1, d)
        nn.init.normal_(table.weight, std=d**-0.5)
        self.y_embedder = _named(embedding_table=_named(embedding=table))

        shared = config.depth - config.head_depth
        self.shared_blocks = nn.ModuleList(Block(d, config.heads) for _ in range(shared))
        self.u_heads = nn.ModuleList(Block(d, config.heads) for _ in range(config.head_depth))
        self.u_final_layer = _named(norm=RMSNorm(d), linear=_linear(d, p * p * channels))

    def forward(
        self,
        z: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        step: float,
        guidance: float,
        interval: tuple[float, float],
    ) -> Float[Tensor, "n c h w"]:
        """The image predicted from z, told the class, the length of the step and the guidance."""
        numbers = torch.cat(
            [
                self.omega_tokens + self.omega_embedder(1 - 1 / guidance),
                self.t_min_tokens + self.cfg_t_start_embedder(interval[0]),
                self.t_max_tokens + self.cfg_t_end_embedder(interval[1]),
                self.time_tokens + self.h_embedder(step),
            ]
        )
        classes = self.class_tokens + self.y_embedder(labels)[:, None]
        patches = self.x_embedder(z).flatten(2).mT
        x = torch.cat([classes, numbers.expand(len(z), -1, -1), patches], dim=1) + self.pos_embed
        rotation = self._rotation(x)
        # The last layer is outside: the 8 significant bits of bfloat16 would show in the pixels.
        with torch.autocast(z.device.type, torch.bfloat16, enabled=self.autocast):
            for block in (*self.shared_blocks, *self.u_heads):
                if self.checkpointing and torch.is_grad_enabled():
                    # No block draws random numbers, so there is no state to keep.
                    x = checkpoint(block, x, rotation, use_reentrant=False, preserve_rng_state=False)
                else:
                    x = block(x, rotation)
        pixels = self.u_final_layer(x[:, self.prefix :])
        (rows, columns), p = self.grid, self.patch
        pixels = pixels.unflatten(2, (p, p, -1)).unflatten(1, (rows, columns))
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(z.shape)

    def _rotation(self, like: Tensor) -> Tensor:
        """Cosines and sines [2, s, k/2] by which attention turns each pair: half for the row, half for the column.

        Tokens before the patches are not turned.
        """
        count = self.head_width // 4
        rates = LONGEST_PERIOD ** (-torch.arange(count, device=like.device, dtype=like.dtype) / count)
        rows, columns = (torch.arange(size, device=like.device) for size in self.grid)
        row, column = torch.meshgrid(rows, columns, indexing="ij")
        angles = torch.cat([row.flatten()[:, None] * rates, column.flatten()[:, None] * rates], dim=1)
        angles = F.pad(angles, (0, 0, self.prefix, 0))
        return torch.stack([angles.cos(), angles.sin()])


class Block(nn.Module):
    """x += attention(norm x) * gate; x += SwiGLU(norm x) * gate."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attn = RMSNorm(width), Attention(width, heads)
        self.norm2, self.mlp = RMSNorm(width), SwiGLU(width)
        # Open from the start: closed gates, as MeanFlow begins with, train far slower from nothing (tried on digits).
        self.attn_scale = nn.Parameter(torch.ones(width))
        self.mlp_scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "n s d"], rotation: Float[Tensor, "2 s half"]) -> Float[Tensor, "n s d"]:
        """One block; `rotation` comes from the positions."""
        x = x + self.attn(self.norm1(x), rotation) * self.attn_scale
        return x + self.mlp(self.norm2(x)) * self.mlp_scale


class Attention(nn.Module):
    """Multi-head self-attention with normalised and rotated queries and keys."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = _linear(width, width, bias=False), _linear(width, width, bias=False)
        self.v_proj, self.out_proj = _linear(width, width, bias=False), _linear(width, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)

    def forward(self, x: Float[Tensor, "n s d"], rotation: Float[Tensor, "2 s half"]) -> Float[Tensor, "n s d"]:
        """softmax(q k^T / sqrt k) v for each head, by torch's fused kernel."""
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation)
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x), 8/3 as wide within; wide networks round that up to a multiple of 8."""

    def __init__(self, width: int):
        super().__init__()
        inner = int(width * 8 / 3)
        if width > 1024:
            inner += -inner % 8
        self.w1, self.w3 = _linear(width, inner, bias=False), _linear(width, inner, bias=False)
        self.w2 = _linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "n s d"]) -> Float[Tensor, "n s d"]:
        """Each token on its own."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class NumberEmbedder(nn.Module):
    """A number -> [cos | sin] at 128 rates -> a two-layer perceptron -> [d]."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(_linear(SINUSOIDS, width), nn.SiLU(), _linear(width, width))

    def forward(self, number: float) -> Float[Tensor, " d"]:
        """The embedding of one number, shared by the batch."""
        like, half = next(self.parameters()), SINUSOIDS // 2
        angles = number * LONGEST_PERIOD ** (-torch.arange(half, device=like.device, dtype=like.dtype) / half)
        return self.mlp(torch.cat([angles.cos(), angles.sin()]))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, never in half precision."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The same shape, in the type of the weight."""
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, eps=1e-6)


def rotate(x: Float[Tensor, "n a s k"], rotation: Float[Tensor, "2 s half"]) -> Float[Tensor, "n a s k"]:
    """Turn each neighbouring pair of numbers by the angle of its token (rotary position embedding)."""
    cos, sin = rotation
    first, second = x.unflatten(3, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(3)


class _ToUnitRange(torch.autograd.Function):
    """The clamp below as one node of the graph."""

    @staticmethod
    def forward(ctx, images):
        ctx.save_for_backward(images)
        return images.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        (images,) = ctx.saved_tensors
        outwards = ((images < 0) & (gradient > 0)) | ((images > 1) & (gradient < 0))
        return gradient.masked_fill(outwards, 0)


def to_unit_range(images: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Clamp to [0, 1], so that encoders see what a viewer will, without losing the pixels that are outside.

    Inside the range the gradient is exact. Outside, where a plain clamp has none and a pixel could never come back,
    descent may move the pixel towards the range and not away from it.
    """
    clamped: Tensor = _ToUnitRange.apply(images)
    return clamped


def _named(**modules: nn.Module) -> nn.Sequential:
    """Modules in a row, under their names in the released files."""
    return nn.Sequential(OrderedDict(modules))


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Sequential:
    """A linear layer, one level down as in the released files."""
    return _named(linear=nn.Linear(inputs, outputs, bias=bias))


def _tokens(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, width) * width**-0.5)
