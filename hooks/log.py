"""Send training losses, speed and published metrics to writers (JSON lines, TensorBoard, …)."""

import errno
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.distributed import all_reduce_sum, gather_objects, is_main_process, world_size
from engine.hook import Hook
from engine.trainer import Trainer
from hooks.writers import Writer, as_picture

logger = logging.getLogger(__name__)

_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)}
_OWN = ("loss", "grad_norm", "lr", "images_per_s", "data_wait", "skipped_updates", "bad_images")
_MAX_MISSED = 10_000  # lines that are kept for a writer that fails


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


class LogHook(Hook):
    """Write scalars every `every_steps` steps, at least once an epoch, and the metrics of each evaluation.

    Training scalars are means over the period and all ranks: ``train/loss``, ``train/<loss>``, ``train/grad_norm``; and
    ``train/lr`` (of the first parameter group, as used), ``train/images_per_s``, ``train/data_wait`` (share of the time spent
    waiting for batches), ``train/skipped_updates`` (so far), and ``train/bad_images``, samples that the loader left out so far,
    once there are any. Only the main process writes.

    What hooks log themselves, `Trainer.log`, comes with them under its own name: the mean of all finite values that any rank has
    logged in the period. Between epochs, as after an evaluation, it is written at once, as are pictures: the main process's.
    So this hook belongs after those that log.

    Args:
        writers: see `hooks.writers.Writer`. One that fails is reported and dropped, and training goes on; one for which the disk
            is full or read-only is given what it has missed with the next line.
    """

    def __init__(self, writers: Sequence[Writer], *, every_steps: int = 50) -> None:
        if every_steps < 1:
            raise ValueError(f"LogHook: every_steps={every_steps}; it must be 1 or more")
        self.writers = list(writers)
        self._missed: dict[int, list[Callable[[Writer], None]]] = {}  # by the writer's place in the list: what it has to do yet
        self._lines: list[tuple[dict[str, float], int, int]] = []  # written at the step of the last line
        self._loaded: tuple[int, list] | None = None  # step of the checkpoint, and what was written at it
        self.every_steps = every_steps
        self._no_pictures: set[str] = set()  # names whose pictures were none
        self._means = RunningMeans()
        self._logged: dict[str, RunningMeans] = {}  # of hooks, each of its own: ranks may log different things
        self._is_between_epochs = True
        self._seconds, self._last = 0.0, time.perf_counter()  # of training in the period, and when they were counted last
        self._num_images, self._data_seconds = 0, 0.0  # the trainer's at the start of the period
        self._lr = math.nan
        self._step = 0

    def before_train(self, trainer: Trainer) -> None:
        step, lines = self._loaded or (trainer.step, None)
        self._each_writer(lambda writer: writer.rewind(step, lines) if hasattr(writer, "rewind") else None)
        self._step, self._loaded = trainer.step, None
        self._start_period(trainer)

    def before_epoch(self, trainer: Trainer) -> None:
        self._is_between_epochs = False
        self._last = time.perf_counter()  # evaluations and saving between epochs do not count

    def before_optimizer_step(self, trainer: Trainer) -> None:
        self._lr = trainer.optimizer.param_groups[0]["lr"]  # after the step, the scheduler has put in the next one

    def after_step(self, trainer: Trainer) -> None:
        self._step, now = trainer.step, time.perf_counter()
        self._seconds, self._last = self._seconds + now - self._last, now
        self._means.add({**trainer.losses, "grad_norm": trainer.grad_norm})
        if self.every_steps < trainer.steps_per_epoch:
            is_due = trainer.step % self.every_steps == 0
        else:
            is_due = trainer.epoch_step == trainer.steps_per_epoch
        if is_due:
            self._log(trainer)
        is_last = trainer.epoch_step == trainer.steps_per_epoch or trainer.is_finished
        self._is_between_epochs = is_last or trainer.stop_reason is not None

    def logged(self, trainer: Trainer, name: str, value: float | Tensor) -> None:
        """Take a number into the period's mean, without waiting for the device; between epochs write it.

        Raises:
            ValueError: the name is one of the run's own, or the value is not one number.
        """
        if name in ("step", "epoch") or name.startswith("train/") and name[6:] in {*trainer.losses, *_OWN}:
            raise ValueError(f"trainer.log: {name!r} is a name of the run's own; choose another")
        try:
            value = torch.as_tensor(value, dtype=torch.float32).reshape(())
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"trainer.log: {name} must be one number, not {value!r:.100}") from error
        if not self._is_between_epochs:
            self._logged.setdefault(name, RunningMeans()).add({name: value})
        elif is_main_process():
            self._write(trainer, {name: value.item()})

    def logged_image(self, trainer: Trainer, name: str, image: Any) -> None:
        """Write a picture, at once; what is none is said once and left out, since it is no reason to lose a training."""
        if not is_main_process() or name in self._no_pictures:
            return
        try:
            picture, step, epoch = as_picture(image), trainer.step, trainer.epoch
        except (ValueError, OSError) as error:
            self._no_pictures.add(name)
            logger.warning("trainer.log_image(%r): left out from now on: %s", name, error)
            return
        self._each_writer(
            lambda writer: writer.write_image(name, picture, step, epoch) if hasattr(writer, "write_image") else None)

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._write(trainer, metrics)

    def after_train(self, trainer: Trainer) -> None:
        if trainer.step == trainer.max_steps and self._means.names:  # a run that is stopped goes on with its period later
            self._log(trainer)

    def close(self) -> None:
        self._each_writer(lambda writer: writer.close())
        for writer in self.writers:
            if self._missed.pop(id(writer), None):
                logger.warning("%s: there was no room for its last lines, they are lost", type(writer).__name__)

    def state_dict(self) -> dict[str, Any]:
        lines = [list(line) for line in self._lines if line[1] == self._step]
        logged = {name: [number / world_size() for number in sums] for name, sums in self._logged_sums().items()}
        return {"means": self._means.state_dict(), "logged": logged, "step": self._step, "lines": lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means.load_state_dict(state["means"])
        for name, sums in state.get("logged", {}).items():
            self._logged[name] = RunningMeans()
            self._logged[name].load_state_dict({"names": [name], "totals": torch.tensor([sums])})
        if "lines" in state:
            self._loaded = state["step"], state["lines"]
            self._lines = [tuple(line) for line in state["lines"]]

    def _log(self, trainer: Trainer) -> None:
        means = self._means.compute()  # collective
        seconds = max(self._seconds, 1e-9)
        scalars = {f"train/{name}": value for name, value in means.items()}
        scalars["train/lr"] = self._lr
        scalars["train/images_per_s"] = (trainer.num_images - self._num_images) * world_size() / seconds
        scalars["train/data_wait"] = (trainer.data_seconds - self._data_seconds) / seconds
        scalars["train/skipped_updates"] = trainer.bad_steps
        if num_bad_images := getattr(trainer.train_loader, "num_bad_images", 0):
            scalars["train/bad_images"] = num_bad_images
        scalars |= {name: total / count if count else math.nan for name, (total, count) in self._logged_sums().items()}
        self._write(trainer, scalars)
        self._means, self._logged = RunningMeans(), {}
        self._start_period(trainer)

    def _logged_sums(self) -> dict[str, list[float]]:
        """Return the sum and the count over all ranks of what hooks have logged. Every rank must call it."""
        sums: dict[str, list[float]] = {}
        for of_rank in gather_objects({name: means.totals[0].tolist() for name, means in self._logged.items()}):
            for name, (total, count) in of_rank.items():
                before = sums.get(name, (0.0, 0.0))
                sums[name] = [before[0] + total, before[1] + count]
        return sums

    def _start_period(self, trainer: Trainer) -> None:
        self._num_images, self._data_seconds = trainer.num_images, trainer.data_seconds
        self._seconds, self._last = 0.0, time.perf_counter()

    def _write(self, trainer: Trainer, scalars: dict[str, float]) -> None:
        line = (dict(scalars), trainer.step, trainer.epoch)
        self._lines = [*(other for other in self._lines if other[1] == trainer.step), line]
        self._each_writer(lambda writer: writer.write(*line))

    def _each_writer(self, use: Callable[[Writer], None]) -> None:
        """Let each writer do this, after what it has missed."""
        for writer in list(self.writers) if is_main_process() else []:
            missed = self._missed.setdefault(id(writer), [])
            missed.append(use)
            num_missed = len(missed) - 1
            try:
                while missed:
                    missed[0](writer)
                    del missed[0]
                if num_missed:
                    logger.info("%s works again, with all that it has missed", type(writer).__name__)
            except Exception as error:  # neither a full disk nor the lost connection of a logger must end the training
                if getattr(error, "errno", None) not in _DISK_ERRORS:
                    logger.warning("%s failed and is not used any more", type(writer).__name__, exc_info=True)
                    self.writers.remove(writer)
                elif num_missed == 0:
                    logger.warning("%s failed (%s); it is tried again with each further line", type(writer).__name__, error)
                del missed[_MAX_MISSED:]
