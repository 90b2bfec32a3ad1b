"""Parameters divided over processes by FSDP2 (`torch.distributed.fsdp.fully_shard`): each holds a part of every one.

A divided tensor is a `DTensor`; all functions here leave any other tensor as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def mesh_of(device: str) -> Any:
    """All processes in a row, for `divide`: every process must ask."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.distributed_c10d import get_world_size

    return init_device_mesh(torch.device(device).type, (get_world_size(),))


def divide(modules: Sequence[nn.Module], mesh: Any, rounded: torch.dtype | None = None) -> None:
    """Divide the parameters of modules over all processes, the last module being that which holds the others.

    A module's parameters are whole while it computes, and gradients are divided as they come, after every backward
    pass: none is ever whole. They are summed over the processes and not averaged, since each feeds its own rows of one
    gradient. A process does this alone, module by module on the device of the mesh, whatever the others do.

    Modules that use their float32 parameters `rounded` to another type are sent them in that type; gradients come back
    in it, and are summed as float32.

    Raises ValueError when this torch cannot do that.
    """
    try:
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        sums = FSDPModule.set_force_sum_reduction_for_comms
    except (ImportError, AttributeError):
        raise ValueError("This torch cannot divide weights over processes and sum gradients; update it.") from None
    sent = MixedPrecisionPolicy()
    if rounded is not None:  # inputs stay as they are: rotary tables in half precision would be other positions
        sent = MixedPrecisionPolicy(param_dtype=rounded, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in modules:
        # The outermost too, which FSDP2 else keeps whole after a forward: its parameters would be other tensors then.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=sent)
    for module in modules:
        module.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        sums(module, True)  # type: ignore[arg-type]  # gloo knows no other


def own(tensor: Tensor) -> Tensor:
    """This process's part, without a graph, sharing its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if is_divided(tensor) else tensor  # type: ignore[operator]


def whole(tensor: Tensor) -> Tensor:
    """All of it: every process must ask."""
    return tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[operator]


def divided_like(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, which every process has, divided as another is."""
    if not is_divided(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def is_divided(tensor: Any) -> bool:
    """Whether it is in parts."""
    return hasattr(tensor, "to_local")
