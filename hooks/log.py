"""Send training losses, speed and published metrics to writers (console, JSON lines, TensorBoard, …)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.distributed import all_reduce_sum, is_main_process, world_size
from engine.hook import Hook

if TYPE_CHECKING:
    from engine.trainer import Trainer
    from hooks.writers import Writer

logger = logging.getLogger(__name__)


class RunningMeans:
    """Means of named 0-dim tensors over steps and ranks, kept on the device; values that are not finite are left out."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.totals = torch.zeros(0, 2)  # sum and count of each name

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the values of one step; waits for the device only where their names are not those of all steps so far."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        is_finite = torch.isfinite(stacked)
        rows = torch.stack([torch.where(is_finite, stacked, 0.0), is_finite.float()], dim=1)
        self.totals = self.totals.to(rows.device)
        new = [name for name in values if name not in self.names]
        if new:
            self.names += new
            self.totals = torch.cat([self.totals, self.totals.new_zeros(len(new), 2)])
        if list(values) == self.names:
            self.totals += rows
        else:
            self.totals[[self.names.index(name) for name in values]] += rows

    def compute(self) -> dict[str, float]:
        """Return the means over all ranks, NaN for a name without finite values. Every rank must call it."""
        rows = all_reduce_sum(self.totals).tolist()  # sync point, once a logging period
        return {name: total / count if count else math.nan for name, (total, count) in zip(self.names, rows)}

    def state_dict(self) -> dict[str, Any]:
        """Return totals that give the same means wherever they are loaded. Every rank must call it."""
        return {"names": list(self.names), "totals": all_reduce_sum(self.totals).cpu() / world_size()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.names, self.totals = list(state["names"]), state["totals"].clone()


class _Clock:
    """Seconds of training since the last restart; evaluations and saving between epochs do not count."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._started = time.perf_counter()
        self._paused_at: float | None = None

    def pause(self) -> None:
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        if self._paused_at is not None:
            self._started += time.perf_counter() - self._paused_at
            self._paused_at = None

    def seconds(self) -> float:
        return (time.perf_counter() if self._paused_at is None else self._paused_at) - self._started


class LogHook(Hook):
    """Write scalars every `every_steps` steps, at least once an epoch, and the metrics of each evaluation.

    Training scalars are means over the period and all ranks: ``train/loss``, ``train/<loss>``, ``train/grad_norm``; and
    ``train/lr`` (of the first parameter group, as used), ``train/images_per_s``, ``train/data_wait`` (share of the time spent
    waiting for batches), ``train/skipped_updates`` (so far), and ``train/bad_images``, samples that the loader left out so far,
    once there are any. Only the main process writes.

    Args:
        writers: see `hooks.writers.Writer`. One that fails is reported and dropped; training goes on.
    """

    def __init__(self, writers: Sequence[Writer], *, every_steps: int = 50) -> None:
        if every_steps < 1:
            raise ValueError(f"LogHook: every_steps={every_steps}; it must be 1 or more")
        self.writers = list(writers)
        self.every_steps = every_steps
        self._means = RunningMeans()
        self._clock = _Clock()
        self._num_images, self._data_seconds = 0, 0.0  # the trainer's at the start of the period
        self._lr = math.nan

    def before_train(self, trainer: Trainer) -> None:
        self._each_writer(lambda writer: writer.rewind(trainer.step) if hasattr(writer, "rewind") else None)
        self._start_period(trainer)

    def before_epoch(self, trainer: Trainer) -> None:
        self._clock.resume()

    def before_optimizer_step(self, trainer: Trainer) -> None:
        self._lr = trainer.optimizer.param_groups[0]["lr"]  # after the step, the scheduler has put in the next one

    def after_step(self, trainer: Trainer) -> None:
        self._means.add({**trainer.losses, "grad_norm": trainer.grad_norm})
        if self.every_steps < trainer.steps_per_epoch:
            is_due = trainer.step % self.every_steps == 0
        else:
            is_due = trainer.epoch_step == trainer.steps_per_epoch
        if is_due:
            self._log(trainer)

    def after_epoch(self, trainer: Trainer) -> None:
        self._clock.pause()

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._write(trainer, metrics)

    def after_train(self, trainer: Trainer) -> None:
        if trainer.step == trainer.max_steps and self._means.names:  # a run that is stopped goes on with its period later
            self._log(trainer)

    def close(self) -> None:
        self._each_writer(lambda writer: writer.close())

    def state_dict(self) -> dict[str, Any]:
        return {"means": self._means.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means.load_state_dict(state["means"])

    def _log(self, trainer: Trainer) -> None:
        means = self._means.compute()  # collective
        seconds = max(self._clock.seconds(), 1e-9)
        scalars = {f"train/{name}": value for name, value in means.items()}
        scalars["train/lr"] = self._lr
        scalars["train/images_per_s"] = (trainer.num_images - self._num_images) * world_size() / seconds
        scalars["train/data_wait"] = (trainer.data_seconds - self._data_seconds) / seconds
        scalars["train/skipped_updates"] = trainer.bad_steps
        if num_bad_images := getattr(trainer.train_loader, "num_bad_images", 0):
            scalars["train/bad_images"] = num_bad_images
        self._write(trainer, scalars)
        self._means = RunningMeans()
        self._start_period(trainer)

    def _start_period(self, trainer: Trainer) -> None:
        self._num_images, self._data_seconds = trainer.num_images, trainer.data_seconds
        self._clock.restart()

    def _write(self, trainer: Trainer, scalars: dict[str, float]) -> None:
        self._each_writer(lambda writer: writer.write(scalars, trainer.step, trainer.epoch))

    def _each_writer(self, use: Callable[[Writer], None]) -> None:
        for writer in list(self.writers) if is_main_process() else []:
            try:
                use(writer)
            except Exception:  # a full disk or a lost connection of a logger must not end the training
                logger.warning("%s failed and is not used any more", type(writer).__name__, exc_info=True)
                self.writers.remove(writer)
