"""Arrays that worker processes use in place, without a copy, whichever way the processes are started."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path("/dev/shm")  # of Linux, where shared memory is a file system of limited size


def free_shared_memory() -> int | None:
    """Return the bytes of shared memory that are free, None where the system sets no limit of its own."""
    try:
        status = os.statvfs(FOLDER)
    except (OSError, AttributeError):
        return None
    return status.f_bavail * status.f_frsize


class SharedArray(np.ndarray):
    """An array in shared memory; sent to another process, it is the same memory there.

    Forked processes see all of their parent's memory anyway; spawned ones would be sent a copy of a plain array each.
    """

    _tensor: Tensor | None = None  # of the same memory, which torch knows how to send; parts of an array have none

    def __reduce__(self):
        return super().__reduce__() if self._tensor is None else (_attach, (self._tensor, self.dtype, self.shape))


def share(array: np.ndarray) -> np.ndarray:
    """Return an array moved to shared memory."""
    if array.size == 0 or isinstance(array, SharedArray):
        return array
    shared = _attach(torch.empty(array.nbytes, dtype=torch.uint8).share_memory_(), array.dtype, array.shape)
    shared[...] = array
    return shared


def _attach(tensor: Tensor, dtype: np.dtype, shape: tuple[int, ...]) -> SharedArray:
    array = tensor.numpy().view(dtype).reshape(shape).view(SharedArray)
    array._tensor = tensor
    return array
