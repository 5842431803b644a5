"""Which sample comes when. Training order is a function of seed and epoch, never of processes, workers or batch size."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from rfdetr.errors import InputError

MIN_STEPS = 5  # a smaller data set is drawn from with replacement until an epoch has as many steps
MIN_WINDOWS = 2  # along a side; smaller sizes leave too few to attend over
_ORDER_STREAM, _SAMPLE_STREAM, _MIXING_STREAM = 1, 2, 3  # keep the kinds of random streams apart


class SampleKey(NamedTuple):
    """What a training sample is made from; the data set needs to know nothing else."""

    index: int  # of the image
    seed: int  # of the run
    epoch: int
    position: int  # in the epoch
    size: tuple[int, int] | None = None  # (H, W) to resize to; None: the data set's own
    part: int = 0  # from 1 on: another picture that is mixed into the sample

    def generator(self) -> np.random.Generator:
        """Return the only source of randomness of this picture."""
        part = (self.part,) if self.part else ()
        return np.random.default_rng((_SAMPLE_STREAM, self.seed, self.epoch, self.position, *part))

    def mixing_generator(self) -> np.random.Generator:
        """Return the source of randomness of what is mixed into this sample."""
        return np.random.default_rng((_MIXING_STREAM, self.seed, self.epoch, self.position))


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """Batches of one rank, shuffled anew each epoch.

    An epoch is cut into windows of ``batch_size x grad_accum_steps x world_size`` positions, one for each optimizer step;
    a last window that is not full is left out. One process with batch 8, 4 accumulated batches of 2, and two ranks with batch 4
    see the same eight samples with the same augmentation.

    Args:
        repeats: (num_samples,) how often each image comes in an epoch (`repeat_factors`). What is left of a whole number is drawn
            for each epoch, so that epochs are equally long; None: once each.
        sizes: (H, W) to choose one from for each step; None leaves the size to the data set.

    Attributes:
        samples_per_batch: over all ranks.
        steps_per_epoch: optimizer steps.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        grad_accum_steps: int = 1,
        seed: int,
        sizes: Sequence[tuple[int, int]] | None = None,
        repeats: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_samples < 1:
            raise InputError("the training split has no images")
        if batch_size < 1 or grad_accum_steps < 1 or not 0 <= rank < world_size or seed < 0:
            raise ValueError(f"batch_size={batch_size}, grad_accum_steps={grad_accum_steps} must be at least 1, "
                             f"seed={seed} at least 0, and rank={rank} below world_size={world_size}")
        self.num_samples, self.batch_size, self.grad_accum_steps = num_samples, batch_size, grad_accum_steps
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.repeats = repeats
        self.epoch_length = num_samples if repeats is None else int(repeats.sum())
        self.sizes = None if sizes is None else [(int(height), int(width)) for height, width in sizes]
        self.samples_per_batch = batch_size * world_size
        self.samples_per_step = self.samples_per_batch * grad_accum_steps
        self.steps_per_epoch = max(MIN_STEPS, self.epoch_length // self.samples_per_step)
        self.draws_again = self.epoch_length < MIN_STEPS * self.samples_per_step  # within an epoch
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose what the next iteration gives: this epoch (from 0), from this batch of it on."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch={start_batch}: an epoch has {len(self)} batches")
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Return the batches of a whole epoch."""
        return self.steps_per_epoch * self.grad_accum_steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # set_epoch during an iteration is for the next one
        return self._batches(self.epoch, self.start_batch)

    def _batches(self, epoch: int, start_batch: int) -> Iterator[list[SampleKey]]:
        order = self._order(epoch)
        for batch in range(start_batch, len(self)):
            size = self._size(epoch * self.steps_per_epoch + batch // self.grad_accum_steps)
            first = (batch * self.world_size + self.rank) * self.batch_size
            positions = range(first, first + self.batch_size)
            yield [SampleKey(int(order[position]), self.seed, epoch, position, size) for position in positions]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the image index at each position of the epoch."""
        generator = np.random.default_rng((_ORDER_STREAM, self.seed, epoch))
        pool = np.arange(self.num_samples)
        if self.repeats is not None:
            ends = np.floor(np.cumsum(self.repeats[generator.permuted(pool, out=pool)]) + generator.random())
            pool = np.repeat(pool, np.diff(ends, prepend=0).astype(np.int64))
        if self.draws_again:
            return pool[generator.integers(len(pool), size=MIN_STEPS * self.samples_per_step)]
        return generator.permutation(pool)

    def _size(self, step: int) -> tuple[int, int] | None:
        return random.Random(step).choice(self.sizes) if self.sizes else None


def multi_scale_sizes(resolution: int, patch_size: int, num_windows: int, expanded: bool) -> list[int]:
    """List the sides (pixels, ascending) around ``resolution`` that split into whole windows of whole patches."""
    step = patch_size * num_windows
    offsets = range(-5, 6) if expanded else range(-3, 5)
    multiples = (resolution // step + offset for offset in offsets)
    return [multiple * step for multiple in multiples if multiple >= MIN_WINDOWS]


def repeat_factors(images: np.ndarray, labels: np.ndarray, num_images: int, threshold: float) -> np.ndarray:
    """Return how often each image is shown in an epoch so that rare classes are seen more often, (num_images,) from 1 on.

    Gupta et al., LVIS (CVPR 2019), appendix B.2: r(c) = max(1, sqrt(threshold / f(c))) for a class on the share f(c) of the
    images, and for an image the largest r of its classes.

    Args:
        images, labels: (M,) image and class of each object.
    """
    image, label = np.unique(np.stack([images, labels]), axis=1)
    factors = np.maximum(1, np.sqrt(threshold * num_images / np.bincount(label).clip(min=1)))
    repeats = np.ones(num_images)
    np.maximum.at(repeats, image, factors[label])
    return repeats


class EvalSampler(Sampler[int]):
    """Every ``world_size``-th image from ``rank`` on: each image once over all ranks, in order, none repeated to fill up."""

    def __init__(self, num_samples: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
