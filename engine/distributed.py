"""One process or many: the few questions and collectives that the loop and the hooks need."""

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from engine.device import resolve_device, use_device
from engine.watch import PeerError, is_lost_contact, watching

LATER = datetime.timedelta(seconds=30)  # a backend gives up so much after the watch, which has more to say
_host_groups: dict[Any, Any] = {}  # process group -> one of the same ranks for tensors on the CPU


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
    """Join the process group that torchrun describes in the environment, leave it at the end, and watch this process meanwhile.

    Makes a CUDA device the current one first, since NCCL would take the first GPU for every rank. The backend is NCCL on CUDA
    and Gloo elsewhere; a process that is the only one needs none.

    Args:
        timeout_minutes: with several ranks, all end where one has not moved for so long (see `engine.watch`).

    Raises:
        PeerError: an error that another rank has caused by ending.
    """
    device = resolve_device(device)
    use_device(device)
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not is_distributed()
    limit = datetime.timedelta(minutes=timeout_minutes) + LATER
    if joins:
        on_cuda = device.type == "cuda"
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=limit, device_id=device if on_cuda else None)
    if is_distributed():
        _host_group(limit)
    with watching(rank(), world_size(), timeout_minutes * 60) as watch:
        try:
            yield
            barrier()  # leave together: a rank that goes first can abort the others' background threads
        except BaseException as error:
            first = watch.announce(error)
            if is_lost_contact(error) or isinstance(error, RuntimeError) and first["rank"] != rank():
                raise PeerError(f"rank {first['rank']} failed: {first['what']}") from error
            raise
        finally:
            _host_groups.clear()
            if joins:
                leave_process_group()


def leave_process_group() -> None:
    """Destroy the process group, once Gloo's threads have let go of the last tensors.

    They need the GIL for that, and PyTorch before 2.8 holds it while it waits for them to end: neither would ever go on.
    """
    time.sleep(0.1)
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
    return _all_reduce(value, dist.ReduceOp.SUM)


def all_reduce_max(value: Tensor) -> Tensor:
    """Return the largest `value` of all ranks, element by element, on the device of `value`; NCCL lets the host go on."""
    return _all_reduce(value, dist.ReduceOp.MAX)


def _all_reduce(value: Tensor, operation: Any) -> Tensor:
    if not is_distributed():
        return value
    by_gpu = dist.get_backend() == "nccl" and not value.is_cuda  # NCCL knows no CPU: there and back over this rank's GPU
    total = value.to("cuda") if by_gpu else value.clone()
    dist.all_reduce(total, operation)
    return total.to(value.device)


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is set on any rank. Every rank must call it; it waits for their hosts, never for a device."""
    if not is_distributed():
        return flag
    flags = torch.tensor([flag], dtype=torch.int32)
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=_host_group())
    return bool(flags.item())


def _host_group(timeout: datetime.timedelta | None = None) -> Any:
    """Return a group of all ranks for tensors on the CPU. Every rank must call it; the first call's `timeout` holds."""
    if "gloo" in dist.get_backend():
        return None  # the default one
    if dist.group.WORLD not in _host_groups:
        _host_groups[dist.group.WORLD] = dist.new_group(backend="gloo", timeout=timeout)
    return _host_groups[dist.group.WORLD]


def sync_batch_norms(model: nn.Module) -> nn.Module:
    """Return the model with batch norms that take their statistics over the batches of all ranks.

    Raises:
        ValueError: it has no batch norm.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ValueError("sync_bn: the model has no batch norm, so there is nothing to synchronise; leave it off")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
