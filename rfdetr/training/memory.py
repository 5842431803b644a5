"""The batch size that fits into memory: the worst step of a run is tried before it, on a copy, and leaves no trace."""

import copy
import gc
import logging
import math
import os
import traceback
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine import Trainer
from engine.device import to_device
from engine.distributed import gather_objects, world_size
from engine.loss import total_loss
from engine.precision import autocast, resolve_precision
from engine.randomness import preserved_rng
from rfdetr.data.cache import GIGABYTE, free_memory
from rfdetr.errors import InputError
from rfdetr.nested_tensor import NestedTensor
from rfdetr.training.config import RunConfig
from rfdetr.training.data import RunData, train_sizes

logger = logging.getLogger(__name__)

USABLE_SHARE = 0.9  # of the free memory
WORKSPACE = 1.6  # of what a step keeps for its backward, that it takes at its peak on a CPU (measured: 1.4 to 1.55)
NO_MEMORY = ("can't allocate memory", "out of memory")  # say a CPU's allocator, and those of devices
SMALLER = ("make data.batch_size smaller (train.effective_batch lets the accumulation follow), or auto; or make model.resolution "
           "smaller, data.multi_scale false or model.gradient_checkpointing true")


def accumulated(config: RunConfig) -> RunConfig:
    """Return the configuration with the accumulation that gives `train.effective_batch`; a batch size "auto" stays for later."""
    batch, effective, processes = config.data.batch_size, config.train.effective_batch, world_size()
    if effective is None:
        return config
    unit = processes * (1 if batch == "auto" else batch)
    if effective % unit:
        raise InputError(f"train.effective_batch: {effective} images cannot be divided into batches of {batch} in {processes} "
                         "processes; make it a multiple")
    steps = config.train.grad_accum_steps if batch == "auto" else effective // unit
    if config.train.grad_accum_steps not in (1, steps):
        raise InputError(f"train.grad_accum_steps: {config.train.grad_accum_steps}, but train.effective_batch {effective} takes "
                         f"{steps} batches of {batch} in each of {processes} processes; leave it out")
    return replace(config, train=replace(config.train, grad_accum_steps=steps))


def with_batch_size(config: RunConfig, batch_size: int) -> RunConfig:
    return accumulated(replace(config, data=replace(config.data, batch_size=batch_size)))


def fit_batch_size(config: RunConfig, data: RunData, model: nn.Module, optimizer: Optimizer, criterion: nn.Module,
                   device: torch.device) -> RunConfig:
    """Return the configuration with the largest batch size that fits, where it is "auto"; try the given one for `preflight`.

    Every rank calls it, and all get the same. Weights, moments and random numbers are as they were.

    Raises:
        InputError: nothing fits.
    """
    given = config.data.batch_size
    if given != "auto" and not config.train.preflight:
        return config
    share = config.train.effective_batch // world_size() if given == "auto" else given
    worst = WorstStep(config, data, model, optimizer, criterion, device)
    sizes = [size for size in range(share, 0, -1) if share % size == 0] if given == "auto" else [given]
    for size in sizes:
        tried = gather_objects(worst.memory(size))
        needed, free = max(tried, key=lambda pair: pair[0] / pair[1])
        if needed <= USABLE_SHARE * free:
            break
    figures = (f"a step of {size} images of {worst.size[0]} x {worst.size[1]} with up to {worst.counts[0]} objects takes "
               f"{'more than' if needed == math.inf else f'{needed / GIGABYTE:.2f} GB of'} the {free / GIGABYTE:.2f} GB that are "
               f"free on {device}")
    if given == "auto" and free == math.inf:
        raise InputError("data.batch_size: auto: this system does not say how much memory is free; give a number")
    if needed > USABLE_SHARE * free:
        raise InputError(f"data.batch_size: {figures}; {SMALLER}")
    logger.info("data.batch_size %s: %s", size, figures)
    return with_batch_size(config, size)


class WorstStep:
    """The step of the largest scale and the most crowded images.

    Attributes:
        size: (H, W) of its images.
        counts: objects of the images, the most crowded first; of somebody's own data set as many as can be found.
    """

    def __init__(self, config: RunConfig, data: RunData, model: nn.Module, optimizer: Optimizer, criterion: nn.Module,
                 device: torch.device) -> None:
        self.parts, self.device = (model, optimizer, criterion), device
        self.precision = resolve_precision(config.train.precision, device)
        self.size = max(train_sizes(config.data, data.architecture) or [data.architecture.input_size], key=math.prod)
        counts = getattr(data.train_set, "object_counts", [data.architecture.num_queries])
        mixing = getattr(data.train_set, "mixing", None)
        counts = sorted((int(count) * (mixing.most_pictures if mixing else 1) for count in counts), reverse=True)
        self.counts, self.with_masks = counts, data.architecture.segmentation_head

    def memory(self, batch_size: int) -> tuple[float, float]:
        """Return the bytes that a step takes at its peak, and those that are free without it."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)
            try:
                self._run(batch_size)
                return torch.cuda.max_memory_reserved(self.device), free
            except torch.OutOfMemoryError:
                return math.inf, free
            finally:
                gc.collect()
                torch.cuda.empty_cache()
        free = (free_memory() or math.inf) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        one, two = self._run(1), self._run(2)
        weights = sum(parameter.nbytes for parameter in self.parts[0].parameters())
        return 4 * weights + WORKSPACE * (one + (batch_size - 1) * (two - one)), free  # also gradients, two moments, an average

    def _run(self, batch_size: int) -> int:
        """Make a whole step with a copy of all, and return how many bytes it has kept for its backward."""
        model, optimizer, criterion = copy.deepcopy(self.parts)
        model.train()
        known, kept = {parameter.untyped_storage()._cdata for parameter in model.parameters()}, {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        with preserved_rng(self.device):
            samples, targets = self._batch(batch_size)
            targets = targets if getattr(criterion, "host_targets", False) else to_device(targets, self.device)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                with autocast(self.device, self.precision):
                    outputs = model(samples, targets)
                alone = {"num_boxes": 1.0} if hasattr(criterion, "count_boxes") else {}  # nothing of other ranks
                loss = total_loss(criterion, criterion.to(self.device)(outputs, targets, **alone))
            loss.backward()
            optimizer.step()
        return sum(kept.values())

    def _batch(self, batch_size: int) -> tuple[NestedTensor, list[dict[str, Any]]]:
        samples = torch.rand(batch_size, 3, *self.size, device=self.device)
        targets = []
        for index in range(batch_size):
            count = self.counts[index % len(self.counts)]
            targets.append({"boxes": torch.rand(count, 4) * 0.5 + 0.25, "labels": torch.zeros(count, dtype=torch.int64)})
            if self.with_masks:
                targets[-1]["masks"] = torch.zeros(count, *self.size, dtype=torch.bool)
        return NestedTensor(samples, samples.new_zeros(batch_size, *self.size, dtype=torch.bool)), targets


def explain(error: RuntimeError, trainer: Trainer) -> None:
    """Raise an InputError with the setting to change, and the figures, if a run has had no more memory."""
    if not isinstance(error, torch.OutOfMemoryError) and not any(text in str(error) for text in NO_MEMORY):
        return
    data = trainer.hooks[0].metadata["args"]["data"]
    what, size, advice = "training", data["batch_size"], SMALLER
    if any(frame.name == "evaluate" for frame in traceback.extract_tb(error.__traceback__)):
        what, size, advice = "evaluation", data["eval_batch_size"] or size, "make data.eval_batch_size smaller"
    raise InputError(f"out of memory on {trainer.device} after step {trainer.step}, in {what} with batches of {size} images: "
                     f"{advice}. What was said: {' '.join(str(error).split())[:300]}") from error
