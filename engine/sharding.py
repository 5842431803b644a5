"""Fully sharded training (FSDP2): each rank keeps a part of every parameter, gradient and optimizer state.

States go in and out whole, so that a checkpoint does not depend on the number of processes that wrote it. torch's own modules
for this take a second to import, which is why only the functions that need them do so.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.distributed import is_distributed, world_size


def shard(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> nn.Module:
    """Divide the model's parameters over the ranks, in place; the optimizer has to be made after this.

    Args:
        model: on `device` already, the same on all ranks.
        blocks: parts that are called as modules; each is gathered when it runs and let go after it.

    Returns:
        the same model, whose forward now is a collective operation.

    Raises:
        ValueError: there is one process only, or this PyTorch cannot do it on this device.
    """
    if not is_distributed():
        raise ValueError("sharding needs several processes; start them with torchrun")
    if device.type == "cpu" and not can_shard_on_cpu():
        raise ValueError(f"sharding on a CPU fails inside PyTorch {torch.__version__}; take a newer one, or ddp")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # our outputs are views of stacked layers, which nobody changes in place; the gradients are those of one process (tests)
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .*returned a view tensor")
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def can_shard_on_cpu() -> bool:
    """Tell whether this PyTorch's streams of a CPU have what FSDP2 asks of them; those of 2.6 have not."""
    return hasattr(torch.cpu.Stream, "record_event")


def is_sharded(model: nn.Module) -> bool:
    return any(_is_part(parameter) for parameter in model.parameters())


def whole(state: Any) -> Any:
    """Return a state with whole tensors in place of sharded ones. Collective if there are any."""
    if _is_part(state):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole(value) for value in state)
    return state


def divided(value: Any, like: Any) -> Any:
    """Divide a whole tensor like the sharded one of the same shape; anything else stays as it is."""
    if not _is_part(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    copies = DTensor.from_local(value.to(like.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(mesh, like.placements)  # each rank has the whole, so nothing is sent


def _is_part(value: Any) -> bool:
    """Whether this is torch's DTensor, of which every rank has a part."""
    return hasattr(value, "full_tensor")
