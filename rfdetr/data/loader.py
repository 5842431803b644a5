"""Loaders: worker processes that make samples, and batches as the model and the losses take them."""

import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.samplers import EvalSampler, TrainBatchSampler
from rfdetr.errors import InputError
from rfdetr.nested_tensor import NestedTensor, collate

CAN_TELL_SENDERS = hasattr(signal, "sigwaitinfo")  # Linux; who sent a signal

logger = logging.getLogger(__name__)

Batch = tuple[NestedTensor, list[dict[str, Tensor]]]


def train_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    seed: int,
    grad_accum_steps: int = 1,
    sizes: Sequence[tuple[int, int]] | None = None,
    size_divisor: int = 1,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 2,
    **options: Any,
) -> "DetectionLoader":
    """Make the loader of training batches; choose the epoch with ``loader.batch_sampler.set_epoch(epoch, start_batch)``.

    Args:
        batch_size: of this rank and one forward pass.
        sizes: (H, W) to choose one from for each step (multi-scale); None keeps the data set's size.
        size_divisor: what both sides of a batch must be divisible by.
        options: `pin_memory`, `prefetch_factor`, `persistent_workers`, `start_method` of `DetectionLoader`.
    """
    sampler = TrainBatchSampler(len(dataset), batch_size, grad_accum_steps=grad_accum_steps, seed=seed, sizes=sizes, rank=rank,
                                world_size=world_size)
    return DetectionLoader(dataset, size_divisor, num_workers, skip_bad_images=True, batch_sampler=sampler, **options)


def eval_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    size_divisor: int = 1,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 2,
    **options: Any,
) -> "DetectionLoader":
    """Make the loader of evaluation batches: every image once over all ranks, the last batch as small as it is.

    The arguments are those of `train_loader`.
    """
    sampler = EvalSampler(len(dataset), rank, world_size)
    return DetectionLoader(dataset, size_divisor, num_workers, skip_bad_images=False, sampler=sampler, batch_size=batch_size,
                           **options)


class DetectionLoader(DataLoader):
    """A DataLoader of `(NestedTensor, targets)` that leaves the global random state alone and passes on errors in plain words.

    Args:
        skip_bad_images: leave out the samples of pictures that cannot be read, where the data set gives any (on_bad_image), so
            that their batch is smaller; of a batch with nothing else one blank picture without objects stays.
        prefetch_factor: batches that each worker prepares in advance.
        persistent_workers: keep the workers from one epoch to the next.
        start_method: of the workers: "fork", "spawn" or "forkserver"; None is the system's own.
        batching: the sampler, or batch sampler, as DataLoader takes it.

    Attributes:
        num_bad_images: samples of pictures that could not be read, so far and in this process; each picture is logged once.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        size_divisor: int,
        num_workers: int,
        *,
        skip_bad_images: bool,
        pin_memory: bool = False,
        prefetch_factor: int = 2,
        persistent_workers: bool = True,
        start_method: str | None = None,
        **batching: Any,
    ) -> None:
        with_workers = {}
        if num_workers:
            context = torch.multiprocessing.get_context(start_method)
            if context.get_start_method() != "fork":
                dataset.share_memory()
            with_workers = {"persistent_workers": persistent_workers, "prefetch_factor": prefetch_factor,
                            "worker_init_fn": _start_worker, "multiprocessing_context": context}
        super().__init__(
            dataset, num_workers=num_workers, pin_memory=pin_memory,
            collate_fn=partial(_collate, size_divisor=size_divisor, skip_bad_images=skip_bad_images),
            generator=torch.Generator(),  # it draws a seed for workers, which nothing here uses; not from the run's generator
            **with_workers, **batching)
        self.skip_bad_images = skip_bad_images
        self.num_bad_images = 0
        self._bad_images: set[str] = set()  # messages that were logged

    def __iter__(self) -> Iterator[Batch]:
        try:
            with _sigterm_held_back():
                batches = super().__iter__()  # starts the workers
            for samples, targets, bad_images in batches:
                self._note(bad_images)
                yield samples, [_as_tensors(target) for target in targets]
        except InputError as error:
            # from a worker the message arrives at the end of the worker's traceback
            raise InputError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None

    def _note(self, bad_images: list[str]) -> None:
        self.num_bad_images += len(bad_images)
        for message in bad_images:
            if message not in self._bad_images:
                self._bad_images.add(message)
                logger.warning("%s (data.on_bad_image: it is %s)", message,
                               "left out of its batches" if self.skip_bad_images else "taken as blank, its objects as missed")


def _collate(
    batch: list[tuple[Tensor, dict[str, Tensor]]], size_divisor: int, skip_bad_images: bool
) -> tuple[NestedTensor, list[dict], list[str]]:
    """Make a batch, and list what is wrong with the bad pictures in it.

    The small tensors of targets travel as arrays, since each tensor would take a file of shared memory.
    """
    messages = [target.pop("bad_image", None) for _, target in batch]
    if skip_bad_images:
        batch = [sample for sample, message in zip(batch, messages) if message is None] or batch[:1]
    samples, targets = collate(batch, size_divisor)
    targets = [{name: value if name == "masks" else value.numpy() for name, value in target.items()} for target in targets]
    return samples, targets, [message for message in messages if message is not None]


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
    parent = multiprocessing.parent_process()  # under forkserver not the one of os.getppid
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    gc.freeze()  # what a forked worker has from its parent: collections would write to its pages, and so copy them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if CAN_TELL_SENDERS:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        threading.Thread(target=_end_when_the_parent_says_so, args=(parent.pid,), daemon=True).start()


def _end_with(parent: multiprocessing.Process) -> None:
    """End when the main process is gone, however that came about; a worker that is busy, or cannot hand over, would stay."""
    parent.join()
    os._exit(1)


def _end_when_the_parent_says_so(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
