"""Convolution of images with frozen filters, whose gradient a CPU finds in about half the time.

Letters: n images, c channels, h height, w width, k filters, s their side, t and u sides of the maps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

COLOURS = 3  # channels of an image; of maps with more, torch's own gradient is the faster one


def conv2d(
    images: Float[Tensor, "n c h w"],
    filters: Float[Tensor, "k c s s"],
    bias: Float[Tensor, " k"] | None = None,
    padding: int = 0,
) -> Float[Tensor, "n k t u"]:
    """`torch.nn.functional.conv2d` of stride 1, the same to the bit.

    The gradient of images on a CPU, where filters are frozen, is a product with the filters and a fold, the same to
    rounding: torch's own takes most of such a layer's time.
    """
    frozen = not filters.requires_grad and not (bias is not None and bias.requires_grad)
    if images.requires_grad and frozen and images.device.type == "cpu" and images.shape[1] <= COLOURS:
        return _Frozen.apply(images, filters, bias, padding)  # type: ignore[no-any-return]
    return F.conv2d(images, filters, bias, padding=padding)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` of stride 1 by `conv2d`."""

    def __init__(self, inputs: int, outputs: int, side: int, padding: int = 0):
        super().__init__(inputs, outputs, side, padding=padding)
        self.around = padding

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k t u"]:
        return conv2d(input, self.weight, self.bias, self.around)


class _Frozen(torch.autograd.Function):
    """Filters and bias get no gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, filters: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(filters)
        ctx.size, ctx.padding = images.shape[2:], padding
        return F.conv2d(images, filters, bias, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        (filters,) = ctx.saved_tensors
        patches = filters.flatten(1).T @ gradient.flatten(2)  # of each place, what its patch of pixels is due
        return F.fold(patches, ctx.size, filters.shape[2:], padding=ctx.padding), None, None, None
