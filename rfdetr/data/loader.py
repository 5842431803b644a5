"""Loaders: worker processes that make samples, and batches as the model and the losses take them."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rfdetr.data.dataset import CocoDetection
from rfdetr.data.samplers import EvalSampler, TrainBatchSampler
from rfdetr.errors import InputError
from rfdetr.nested_tensor import NestedTensor, collate

CAN_TELL_SENDERS = hasattr(signal, "sigwaitinfo")  # Linux; who sent a signal
Batch = tuple[NestedTensor, list[dict[str, Tensor]]]


def train_loader(
    dataset: CocoDetection,
    *,
    batch_size: int,
    seed: int,
    grad_accum_steps: int = 1,
    sizes: Sequence[tuple[int, int]] | None = None,
    size_divisor: int = 1,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 2,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
    start_method: str | None = None,
) -> "DetectionLoader":
    """Make the loader of training batches; choose the epoch with ``loader.batch_sampler.set_epoch(epoch, start_batch)``.

    Args:
        batch_size: of this rank and one forward pass.
        sizes: (H, W) to choose one from for each step (multi-scale); None keeps the data set's size.
        size_divisor: what both sides of a batch must be divisible by.
        prefetch_factor: batches that each worker prepares in advance.
        start_method: of the workers: "fork", "spawn" or "forkserver"; None is the system's own.
    """
    sampler = TrainBatchSampler(len(dataset), batch_size, grad_accum_steps=grad_accum_steps, seed=seed, sizes=sizes, rank=rank,
                                world_size=world_size)
    return DetectionLoader(dataset, size_divisor, num_workers, pin_memory, prefetch_factor, start_method, batch_sampler=sampler)


def eval_loader(
    dataset: CocoDetection,
    *,
    batch_size: int,
    size_divisor: int = 1,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 2,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
    start_method: str | None = None,
) -> "DetectionLoader":
    """Make the loader of evaluation batches: every image once over all ranks, the last batch as small as it is."""
    sampler = EvalSampler(len(dataset), rank, world_size)
    return DetectionLoader(dataset, size_divisor, num_workers, pin_memory, prefetch_factor, start_method, sampler=sampler,
                           batch_size=batch_size)


class DetectionLoader(DataLoader):
    """A DataLoader of `(NestedTensor, targets)` that leaves the global random state alone and passes on errors in plain words."""

    def __init__(self, dataset: CocoDetection, size_divisor: int, num_workers: int, pin_memory: bool, prefetch_factor: int,
                 start_method: str | None, **batching) -> None:
        with_workers = {"persistent_workers": True, "prefetch_factor": prefetch_factor, "worker_init_fn": _start_worker,
                        "multiprocessing_context": start_method} if num_workers else {}
        super().__init__(
            dataset, num_workers=num_workers, pin_memory=pin_memory, collate_fn=partial(_collate, size_divisor=size_divisor),
            generator=torch.Generator(),  # it draws a seed for workers, which nothing here uses; not from the run's generator
            **with_workers, **batching)

    def __iter__(self) -> Iterator[Batch]:
        try:
            with _sigterm_held_back():
                batches = super().__iter__()  # starts the workers
            for samples, targets in batches:
                yield samples, [_as_tensors(target) for target in targets]
        except InputError as error:
            # from a worker the message arrives at the end of the worker's traceback
            raise InputError(str(error).rpartition(f"{InputError.__name__}: ")[2].strip()) from None


def _collate(batch: list[tuple[Tensor, dict[str, Tensor]]], size_divisor: int) -> tuple[NestedTensor, list[dict]]:
    """Make a batch; the small tensors of targets travel as arrays, since each tensor would take a file of shared memory."""
    samples, targets = collate(batch, size_divisor)
    return samples, [{name: value if name == "masks" else value.numpy() for name, value in target.items()} for target in targets]


def _as_tensors(target: dict) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in target.items()}


@contextmanager
def _sigterm_held_back() -> Iterator[None]:
    """Block SIGTERM in this thread, and so in all threads of the processes that it starts."""
    if not CAN_TELL_SENDERS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker_id: int) -> None:
    """Let the main process alone decide when a worker ends.

    A signal to the whole process group (Ctrl-C, `timeout`, a cluster's scheduler) would otherwise end the workers before the main
    process has written its checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if CAN_TELL_SENDERS:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        threading.Thread(target=_end_when_the_parent_says_so, args=(os.getppid(),), daemon=True).start()


def _end_when_the_parent_says_so(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
