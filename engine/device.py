"""Where a run computes: choosing the device, and moving batches to it."""

import ctypes
import functools
import os
import platform
import sys
from typing import Any

import torch


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device that exists; under torchrun each rank takes its own GPU.

    Raises:
        ValueError: the device is unknown, or not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            device = "cuda"
        else:
            device = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {device!r} is not a device; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        return _cuda_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: 'mps' asked for, but this PyTorch finds no Apple GPU; use --train.device cpu")
    return device


def _cuda_device(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index  # as torchrun sets it
    if index >= count:
        raise ValueError(
            f"device: '{device}' (GPU {index}) asked for, but this PyTorch sees {count} CUDA device(s); "
            "use --train.device cpu, or start no more processes than there are GPUs"
        )
    return torch.device("cuda", index)


def use_device(device: torch.device) -> None:
    """Prepare this process for a device: make a CUDA device the current one, which events, new streams and NCCL go by; on a CPU,
    keep freed memory."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "cpu":
        _keep_freed_memory()


@functools.cache  # once a process
def _keep_freed_memory() -> None:
    """Let the C library's allocator reuse large blocks instead of giving them back to the system.

    A step frees and asks again for hundreds of tensors of megabytes; each time the system would fill their pages with zeros,
    which took a tenth of a step (glibc; others are left alone). The process keeps what its largest step took.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    mallopt, trim_threshold, mmap_max = ctypes.CDLL(None).mallopt, -1, -4  # of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def to_device(value: Any, device: torch.device) -> Any:
    """Move tensors, and anything with a `.to`, inside lists, tuples and dicts to `device`.

    A copy from pinned memory to a GPU is not waited for. One to the CPU is: its values are read at once.
    """
    if hasattr(value, "to"):
        return value.to(device, non_blocking=device.type != "cpu")
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    return value
