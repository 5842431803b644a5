"""Loaders: worker processes that make samples, and batches as the model and the losses take them."""

import gc
import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from rfdetr.data.dataset import DetectionDataset
from rfdetr.data.images import normalize, to_float
from rfdetr.data.samplers import EvalSampler, SampleKey, TrainBatchSampler
from rfdetr.data.shared_memory import free_shared_memory
from rfdetr.errors import InputError
from rfdetr.nested_tensor import NestedTensor, collate

CAN_TELL_SENDERS = hasattr(signal, "sigwaitinfo")  # Linux; who sent a signal
CHANCE = 1e-6  # of stopping a data set that has just as many bad pictures as are allowed, before all of it was seen
IN_USE = 2  # batches of workers that the main process has at a time: the next one arrives while the last is still there
MEGABYTE = 1e6
WAY_OUT = "use data.num_workers 0, a smaller data.prefetch_factor or batch, or a larger /dev/shm (docker run --shm-size=8g)"

logger = logging.getLogger(__name__)

Batch = tuple[NestedTensor, list[dict[str, Tensor]]]


def train_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    seed: int,
    grad_accum_steps: int = 1,
    sizes: Sequence[tuple[int, int]] | None = None,
    repeats: np.ndarray | None = None,
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
        repeats: how often an epoch shows each image, see `TrainBatchSampler`.
        size_divisor: what both sides of a batch must be divisible by.
        options: `pin_memory`, `prefetch_factor`, `persistent_workers`, `start_method`, `timeout_seconds`, `max_bad_images` of
            `DetectionLoader`.
    """
    sampler = TrainBatchSampler(len(dataset), batch_size, grad_accum_steps=grad_accum_steps, seed=seed, sizes=sizes,
                                repeats=repeats, rank=rank, world_size=world_size)
    if num_workers:
        options["prefetch_factor"] = _prefetch(dataset, sampler, num_workers, options.get("prefetch_factor", 2))
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


class PixelBatch(NestedTensor):
    """Pictures (B, 3, H, W) uint8 on their way from a loader; `to` makes the model's input of them.

    Worker processes, pinned memory and the way to a device then hold bytes, a quarter of the numbers, and the device does the
    arithmetic.
    """

    def to(self, device: torch.device | str, non_blocking: bool = False, dtype: torch.dtype | None = None) -> NestedTensor:
        """Copy the bytes to a device, and normalise them there: (B, 3, H, W) float32, zero where the padding is."""
        copied = super().to(device, non_blocking=non_blocking)
        images = normalize(to_float(copied.tensors))
        if copied.has_padding:
            images = images.masked_fill_(copied.mask[:, None], 0.0)
        return NestedTensor(images if dtype is None else images.to(dtype), copied.mask, has_padding=copied.has_padding)


class DetectionLoader(DataLoader):
    """A DataLoader that leaves the global random state alone and passes on errors in plain words.

    It yields `(PixelBatch, targets)`; where the data set gives normalised images, a NestedTensor in place of the PixelBatch.

    Args:
        skip_bad_images: leave out the samples of pictures that cannot be read, where the data set gives any (on_bad_image), so
            that their batch is smaller; of a batch with nothing else one blank picture without objects stays.
        prefetch_factor: batches that each worker prepares in advance.
        persistent_workers: keep the workers from one epoch to the next.
        start_method: of the workers: "fork", "spawn" or "forkserver"; None is the system's own.
        timeout_seconds: how long to wait for a batch of the workers; 0: for ever.
        max_bad_images: share of the pictures that may be bad before the loader gives up with an InputError.
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
        timeout_seconds: float = 300,
        max_bad_images: float = 0.1,
        **batching: Any,
    ) -> None:
        if not 0 <= max_bad_images <= 1:
            raise InputError(f"data.max_bad_images: {max_bad_images} is not possible; it is a share of the pictures, 0 to 1")
        if not timeout_seconds >= 0:
            raise InputError(f"data.timeout_seconds: {timeout_seconds} is not possible; it must be 0 (for ever) or more")
        with_workers = {}
        if num_workers:
            context = torch.multiprocessing.get_context(start_method)
            if context.get_start_method() != "fork":
                dataset.share_memory()
            with_workers = {"persistent_workers": persistent_workers, "prefetch_factor": prefetch_factor,
                            "timeout": timeout_seconds, "worker_init_fn": _start_worker, "multiprocessing_context": context}
        super().__init__(
            dataset, num_workers=num_workers, pin_memory=pin_memory,
            collate_fn=partial(_collate, size_divisor=size_divisor, skip_bad_images=skip_bad_images),
            generator=torch.Generator(),  # it draws a seed for workers, which nothing here uses; not from the run's generator
            **with_workers, **batching)
        self.skip_bad_images, self.max_bad_images = skip_bad_images, max_bad_images
        self.num_bad_images = self._num_samples = 0
        self._bad_images: set[str] = set()  # messages that were logged
        if num_workers:
            self._check_shared_memory()

    def __iter__(self) -> Iterator[Batch]:
        plan, received = iter(self.batch_sampler), 0  # the sampler works nothing out before somebody asks
        batches = None
        try:
            with _sigterm_held_back():
                batches = super().__iter__()  # starts the workers
            if self.num_workers:
                _deaths.put_off()
            while (batch := _deaths.wait_for(batches)) is not None:
                samples, targets, messages = batch
                received += 1
                self._note(messages)
                yield samples, [{name: torch.as_tensor(value) for name, value in target.items()} for target in targets]
        except InputError as error:
            # from a worker the message arrives at the end of the worker's traceback
            raise InputError(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None
        except RuntimeError as error:
            if not str(error).startswith("DataLoader "):
                raise  # not of the loader, but of what it loads
            self._iterator = None
            for worker in getattr(batches, "_workers", []):
                worker.kill()  # one that does not answer would not let this process end
            raise InputError(self._explain(str(error), next(islice(plan, received, None), []))) from None

    def _check_shared_memory(self) -> None:
        """Refuse batches that will not fit into shared memory, where all that the workers have made in advance lies."""
        batch_bytes = _batch_bytes(self.dataset, self.batch_sampler)
        num_batches = min(self.num_workers * self.prefetch_factor + IN_USE, len(self))
        free = free_shared_memory()
        if free is not None and batch_bytes * num_batches > free:
            raise InputError(f"data.num_workers: {self.num_workers} workers with {self.prefetch_factor} batches each in advance "
                             f"need {batch_bytes * num_batches / MEGABYTE:.1f} MB of shared memory ({batch_bytes / MEGABYTE:.1f} "
                             f"MB a batch), but only {free / MEGABYTE:.1f} MB of /dev/shm are free; {WAY_OUT}")

    def _explain(self, error: str, batch: list[SampleKey | int]) -> str:
        """Say what became of a batch that did not come."""
        indices = [key.index if isinstance(key, SampleKey) else key for key in batch]
        names = ", ".join(str(self.dataset.image_path(index)) for index in indices[:4]) + ", ..." * (len(indices) > 4)
        free = free_shared_memory()
        memory = "" if free is None else f"; {free / MEGABYTE:.1f} MB of shared memory (/dev/shm) are free"
        return (f"data.num_workers: the workers gave no more batches ({error}); the next one is of "
                f"{names or 'no pictures'}{memory}; if they ran out of memory, use fewer workers; if the disk is slow, "
                "raise data.timeout_seconds; with data.num_workers 0 the main process reads and shows what is wrong")

    def _note(self, messages: list[str | None]) -> None:
        """Count the samples of a batch; a message says why one is bad."""
        self._num_samples += len(messages)
        bad = [message for message in messages if message is not None]
        self.num_bad_images += len(bad)
        for message in bad:
            if message not in self._bad_images:
                self._bad_images.add(message)
                logger.warning("%s (data.on_bad_image: it is %s)", message,
                               "left out of its batches" if self.skip_bad_images else "taken as blank, its objects as missed",
                               extra={"of_rank": True})  # the others have other images
        if bad and self._are_too_many():
            raise InputError(f"data.on_bad_image: of the {self.dataset.split} split {self.num_bad_images} pictures of the "
                             f"{self._num_samples} read so far are bad ({len(self._bad_images)} different ones of the "
                             f"{len(self.dataset)} that it has), more than data.max_bad_images {self.max_bad_images:g} allows; "
                             f"the data set check lists all that are bad, to be mended or left out. The last one: {bad[-1]}")

    def _are_too_many(self) -> bool:
        """Tell whether more than the allowed share of the data set is bad, or so much of what was seen that it must be.

        The second is Chernoff's bound: with the allowed share of bad pictures, so many would come up by a chance below CHANCE.
        """
        allowed, num_images = self.max_bad_images, len(self.dataset)
        if allowed > 0:
            allowed = max(allowed, 1 / num_images)  # one bad picture is no reason, however small the data set
        found = self.num_bad_images / self._num_samples
        if len(self._bad_images) > allowed * num_images or allowed == 0:
            return True
        return found > allowed and self._num_samples * _divergence(found, allowed) > -math.log(CHANCE)


def _prefetch(dataset: DetectionDataset, sampler: TrainBatchSampler, num_workers: int, given: int) -> int:
    """Return how many batches each worker is to make in advance: enough for a window, which the loop asks for at once.

    With fewer, the workers would stand still while it is computed, and the loop while they make the rest of the next one.
    """
    wanted, free = math.ceil(sampler.grad_accum_steps / num_workers), free_shared_memory()
    if wanted <= given:
        return given
    needed = _batch_bytes(dataset, sampler) * (num_workers * wanted + IN_USE)
    if free is None or needed <= free:
        return wanted
    logger.warning("train.grad_accum_steps: the %d batches of a step do not fit into shared memory in advance (%.1f MB of "
                   "/dev/shm are free, %.1f MB needed); steps will wait for their data", sampler.grad_accum_steps,
                   free / MEGABYTE, needed / MEGABYTE)
    return given


def _batch_bytes(dataset: DetectionDataset, sampler: Any) -> float:
    sizes = getattr(sampler, "sizes", None) or [None]
    return max(dataset.sample_bytes(size) for size in sizes) * sampler.batch_size


def _collate(
    batch: list[tuple[Tensor, dict[str, Tensor]]], size_divisor: int, skip_bad_images: bool
) -> tuple[NestedTensor, list[dict], list[str]]:
    """Make a batch, and say for each picture what is wrong with it, or None.

    The small tensors of targets travel as arrays, since each tensor would take a file of shared memory.
    """
    messages = [target.pop("bad_image", None) for _, target in batch]
    if skip_bad_images:
        batch = [sample for sample, message in zip(batch, messages) if message is None] or batch[:1]
    samples, targets = collate(batch, size_divisor)
    if samples.dtype == torch.uint8:
        samples = PixelBatch(samples.tensors, samples.mask, has_padding=samples.has_padding)
    for target in targets:
        if "masks" in target:  # one without a pixel is no mask, or none that this view shows
            target["has_mask"] = target["masks"].flatten(1).any(1)
    targets = [{name: value if name == "masks" else value.numpy() for name, value in target.items()} for target in targets]
    if get_worker_info() is not None:
        masks = [samples.mask, *(target.get("masks") for target in targets)]
        _share([samples.tensors, *(mask for mask in masks if mask is not None)])
    return samples, targets, messages


def _share(tensors: list[Tensor]) -> None:
    """Move a worker's tensors to shared memory here, where an error arrives; in the queue's own thread it would be lost."""
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        needed, free = sum(tensor.nbytes for tensor in tensors), free_shared_memory() or 0
        raise InputError(f"data.num_workers: a worker cannot hand over its batch of {needed / MEGABYTE:.1f} MB, as "
                         f"{free / MEGABYTE:.1f} MB of shared memory (/dev/shm) are free ({str(error).splitlines()[0]}); "
                         f"{WAY_OUT}") from None


def _divergence(found: float, expected: float) -> float:
    """Kullback-Leibler divergence of two shares, in nats."""
    pairs = (found, expected), (1 - found, 1 - expected)
    return sum(share * math.log(share / other) if other else math.inf for share, other in pairs if share)


class _WorkerDeaths:
    """Lets the death of a worker be an error where a batch is waited for, of which the loader can say what is wrong.

    torch raises in its handler of SIGCHLD: in the middle of a forward pass, of a step, or of whatever the main thread does then.
    """

    def __init__(self) -> None:
        self._is_waiting, self._raise = False, None

    def put_off(self) -> None:
        """Take the place of torch's handler, which it sets once, when it starts workers."""
        is_main = threading.current_thread() is threading.main_thread()
        if self._raise is None and is_main and callable(handler := signal.getsignal(signal.SIGCHLD)):
            self._raise = handler
            signal.signal(signal.SIGCHLD, self._handle)

    def wait_for(self, batches: Iterator) -> Any:
        """Return the next batch, None at the end."""
        before, self._is_waiting = self._is_waiting, True
        try:
            if self._raise is not None:
                self._raise(signal.SIGCHLD, None)  # for those that died meanwhile
            return next(batches, None)
        finally:
            self._is_waiting = before

    def _handle(self, *arguments: Any) -> None:
        if self._is_waiting:
            self._raise(*arguments)


_deaths = _WorkerDeaths()  # of all loaders, as a process has one handler


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
