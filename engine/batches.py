"""The train loader as the loop sees it: from any batch of any epoch on, on the device, with the waiting time measured.

A window is the list of batches ``(samples, targets)`` of one step; a target is usually a dict with ``boxes``, ``labels`` and
``image_id``.
"""

import inspect
import logging
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.device import to_device
from engine.randomness import preserved_rng

OF_OBJECTS = ("boxes", "labels", "masks", "has_mask")  # what a target has for each of its objects

logger = logging.getLogger(__name__)


class Loader(Protocol):
    """What is needed of a train loader: its batches ``(samples, targets)``, and how many an epoch has."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


def samples_per_step(train_loader: Loader, grad_accum_steps: int) -> int | None:
    """Return the samples of one step over all ranks, if the loader's batch sampler knows those of a batch."""
    per_batch = getattr(getattr(train_loader, "batch_sampler", None), "samples_per_batch", None)
    return per_batch * grad_accum_steps if per_batch else None


def nearest_step(saved: Mapping[str, Any], steps_per_epoch: int, samples_per_step: int | None) -> tuple[int, int]:
    """Return the step, of all and of its epoch, at which a run goes on from a saved position.

    Where an epoch is divided into other steps now, it is the one with the same sample, or share of the epoch, rounded down.
    """
    step, epoch_step = saved["step"], saved["epoch_step"]
    now, then = (samples_per_step, steps_per_epoch), (saved["samples_per_step"], saved.get("steps_per_epoch"))
    then = (then[0], then[1] or max(now[1], epoch_step))
    if now == then:
        return step, epoch_step
    factor = (then[0], now[0]) if now[0] and then[0] else (now[1], then[1])
    epoch_step = min(epoch_step * factor[0] // factor[1], steps_per_epoch - 1)
    step = saved["epoch"] * steps_per_epoch + epoch_step
    logger.warning("an epoch had %d steps of %s images, and has %d of %s now: going on in epoch %d, step %d", then[1],
                   then[0] or "some", now[1], now[0] or "some", saved["epoch"] + 1, step)
    return step, epoch_step


class WaitingEnded(BaseException):
    """Raised by a signal handler to end the waiting for a batch; no Exception, which a loader might take for its own."""


class BatchStream:
    """Iterate windows of `grad_accum_steps` batches of one epoch, starting at batch `start_batch`.

    A batch sampler (or sampler) with ``set_epoch(epoch, start_batch=0)`` starts there at once. One with ``set_epoch(epoch)``
    alone, or none at all, is iterated and its first batches are thrown away.

    Args:
        host_targets: leave the targets on the host, for a criterion that copies what it needs in one piece.
    """

    def __init__(self, train_loader: Loader, device: torch.device, *, host_targets: bool = False) -> None:
        self.train_loader = train_loader
        self.device = device
        self.host_targets = host_targets
        self.seconds = 0.0  # waited for batches, in all
        self.is_waiting = False
        self._batches: Iterator[Any] = iter(())

    def start(self, epoch: int, start_batch: int) -> None:
        """Go to batch `start_batch` of `epoch` (both counted from 0)."""
        to_skip = self._set_epoch(epoch, start_batch)
        with preserved_rng(self.device):
            self._batches = islice(iter(self.train_loader), to_skip, None)

    def next_window(self, size: int) -> list:
        """Return the next `size` batches, on the device.

        Raises:
            RuntimeError: the loader ends early, which means that its `len` is wrong.
        """
        started = time.perf_counter()
        self.is_waiting = True
        try:
            window = list(islice(self._batches, size))
        finally:
            self.is_waiting = False
        self.seconds += time.perf_counter() - started
        if len(window) < size:
            raise RuntimeError(f"the train loader ended early: its len() is {len(self.train_loader)} batches")
        if self.host_targets:
            return [(to_device(samples, self.device), targets) for samples, targets in window]
        return [to_device(batch, self.device) for batch in window]

    def _set_epoch(self, epoch: int, start_batch: int) -> int:
        for owner in ("batch_sampler", "sampler"):
            set_epoch = getattr(getattr(self.train_loader, owner, None), "set_epoch", None)
            if set_epoch is None:
                continue
            if "start_batch" in inspect.signature(set_epoch).parameters:
                set_epoch(epoch, start_batch=start_batch)
                return 0
            set_epoch(epoch)
            return start_batch
        return start_batch


def image_ids(batches: list) -> list:
    """Return the `image_id` of each target of a window that has one, as it is: on the device, if it is a tensor."""
    return [target["image_id"] for target in _dict_targets(batches) if "image_id" in target]


def check_targets(batches: list, origin: str) -> None:
    """Refuse a target that has more of one thing than of another for its objects; only shapes are looked at.

    Raises:
        ValueError: it names `origin`, where the window comes from, and the image.
    """
    for target in _dict_targets(batches):
        counts = {name: target[name].shape[:1].numel() for name in OF_OBJECTS if isinstance(target.get(name), Tensor)}
        if len(set(counts.values())) > 1:
            image = int(target["image_id"]) if "image_id" in target else "without image_id"
            raise ValueError(f"{origin}: image {image} has {' and '.join(f'{count} {name}' for name, count in counts.items())}")


def _dict_targets(batches: list) -> list[dict]:
    return [target for _, targets in batches for target in targets if isinstance(target, dict)]
