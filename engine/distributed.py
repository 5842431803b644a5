"""One process or many: the few questions and collectives that the loop and the hooks need."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from engine.device import resolve_device, use_device


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def is_main_process() -> bool:
    return rank() == 0


@contextmanager
def process_group(device: torch.device, timeout_minutes: float = 30.0) -> Iterator[None]:
    """Join the process group that torchrun describes in the environment, and leave it at the end.

    Makes a CUDA device the current one first, since NCCL would take the first GPU for every rank; in a process that torchrun
    did not start that is all. The backend is NCCL on CUDA and Gloo elsewhere.
    """
    device = resolve_device(device)
    use_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or is_distributed():
        yield
        return
    on_cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        timeout=datetime.timedelta(minutes=timeout_minutes),
        device_id=device if on_cuda else None,
    )
    try:
        yield
        dist.barrier()  # leave together: a rank that goes first can abort the others' background threads
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    if is_distributed():
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's `value`, in rank order, on every rank. A rank without data passes an empty value."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of `value` over the ranks, on the device of `value`."""
    if not is_distributed():
        return value
    by_gpu = dist.get_backend() == "nccl" and not value.is_cuda  # NCCL knows no CPU: there and back over this rank's GPU
    total = value.to("cuda") if by_gpu else value.clone()
    dist.all_reduce(total)
    return total.to(value.device)


def sync_batch_norms(model: nn.Module) -> nn.Module:
    """Return the model with batch norms that take their statistics over the batches of all ranks.

    Raises:
        ValueError: it has no batch norm.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ValueError("sync_bn: the model has no batch norm, so there is nothing to synchronise; leave it off")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
