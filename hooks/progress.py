"""How a run goes, for people: a bar for each epoch on terminals and in notebooks, and one table, a row an epoch."""

import logging
import os
import shutil
import sys
import time
import warnings

import torch
from torch import Tensor

from engine.distributed import is_main_process, world_size
from engine.hook import Hook
from engine.trainer import Trainer
from hooks.table import Column, cells, columns_of_run, header, shown_row

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a notebook without ipywidgets gets a bar of letters
    from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

SECONDS_OF_SILENCE = 60  # after which a log file that shows no bar gets a line within an epoch
ROWS_A_HEADER = 30
PREFIX = 15  # characters of the time and the level before a line
TERMS = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask_ce", "loss_mask_dice")


class ProgressHook(Hook):
    """Show a bar an epoch (loss, learning rate, images/s, waiting for data, GPU memory, time left of the run) and the table.

    A row of the table has the epoch, counted from 1, its mean losses, what an evaluation after it has found ("-": nothing was
    measured; "*": the best so far), the training's images/s, the most memory of the GPU, and the time left. It is logged, so it
    goes wherever the log goes.

    Args:
        every_steps: refresh the values of the bar every so many steps (each waits for the device).
        enabled: None shows the bar on a terminal and in a notebook, but not in CI. Ranks above 0 never show one.
    """

    def __init__(self, *, every_steps: int = 10, enabled: bool | None = None) -> None:
        self.every_steps = every_steps
        self.enabled = enabled
        self._bar: tqdm | None = None
        self._columns: list[Column] = []
        self._row: dict[str, float | str] | None = None  # of an epoch that is still to be shown
        self._num_rows = 0
        self._start: tuple[float, int, int, float] = (0.0, 0, 0, 0.0)  # time, steps, images, seconds of waiting
        self._epoch_start = (0.0, 0, 0)  # time, images, steps
        self._sums: Tensor | None = None  # of the losses of an epoch
        self._last_said = 0.0

    def before_train(self, trainer: Trainer) -> None:
        self._last_said = time.perf_counter()
        self._start = (self._last_said, trainer.step, trainer.num_images, trainer.data_seconds)

    def before_epoch(self, trainer: Trainer) -> None:
        self._show_row(trainer)  # no evaluation has come after the last epoch
        self._sums = None
        self._epoch_start = (time.perf_counter(), trainer.num_images, trainer.step)
        if is_main_process() and (_is_watched() if self.enabled is None else self.enabled):
            self._bar = tqdm(
                total=trainer.steps_per_epoch,
                initial=trainer.epoch_step,
                desc=f"epoch {trainer.epoch + 1}/{trainer.max_epochs}",
                unit="step",
                dynamic_ncols=True,
                leave=False,  # the table's row takes its place
            )

    def after_step(self, trainer: Trainer) -> None:
        if not is_main_process():
            return
        if losses := [trainer.losses[name] for name in TERMS if name in trainer.losses]:
            values = torch.stack(losses).detach().float().nan_to_num(0.0, 0.0, 0.0)
            self._sums = values if self._sums is None else self._sums + values
        if self._bar is not None:
            if trainer.step % self.every_steps == 0:
                self._bar.set_postfix_str(self._values(trainer), refresh=False)
            self._bar.update(1)
        elif time.perf_counter() - self._last_said > SECONDS_OF_SILENCE:
            self._say("epoch %d/%d, step %d/%d: %s", trainer.epoch + 1, trainer.max_epochs, trainer.epoch_step,
                      trainer.steps_per_epoch, self._values(trainer))

    def after_epoch(self, trainer: Trainer) -> None:
        self.close()
        if not is_main_process():
            return
        started, num_images, step = self._epoch_start
        done = trainer.step - step
        names = [name for name in TERMS if name in trainer.losses]
        means = [] if self._sums is None else (self._sums / max(done, 1)).tolist()  # sync point, once an epoch
        speed = (trainer.num_images - num_images) * world_size() / max(time.perf_counter() - started, 1e-9)
        self._row = {**dict(zip(names, means)), "images/s": speed, "memory": _gpu_memory(trainer.device)}

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if is_main_process():
            self._row = {**(self._row or {}), **metrics}
            self._show_row(trainer)

    def after_train(self, trainer: Trainer) -> None:
        self._show_row(trainer)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show_row(self, trainer: Trainer) -> None:
        if self._row is None:
            return
        if self._num_rows % ROWS_A_HEADER == 0:
            room = shutil.get_terminal_size().columns - PREFIX if sys.stderr.isatty() else None
            self._columns = columns_of_run(trainer, room)
            self._say("%s", header(self._columns))
        epoch = trainer.epoch + (trainer.epoch_step > 0)  # also one that max_steps has cut short
        row = {"epoch": f"{epoch}/{trainer.max_epochs}", **self._row, "left": self._time_left(trainer)}
        self._say("%s", shown_row(self._columns, cells(trainer, self._columns, row)))
        self._num_rows += 1
        self._row = None

    def _say(self, text: str, *arguments: object) -> None:
        self._last_said = time.perf_counter()
        logger.info(text, *arguments)

    def _time_left(self, trainer: Trainer) -> str:
        done = trainer.step - self._start[1]
        seconds = time.perf_counter() - self._start[0]
        return tqdm.format_interval(seconds / done * (trainer.max_steps - trainer.step)) if done else ""

    def _values(self, trainer: Trainer) -> str:
        started, _, num_images, data_seconds = self._start
        seconds = time.perf_counter() - started
        values = {
            "loss": f"{trainer.losses['loss'].item():.3f}" if "loss" in trainer.losses else "",  # sync point
            "lr": f"{trainer.optimizer.param_groups[0]['lr']:.1e}",
            "img/s": f"{(trainer.num_images - num_images) * world_size() / seconds:.1f}",
            "wait": f"{(trainer.data_seconds - data_seconds) / seconds:.0%}",
            "mem": _gpu_memory(trainer.device),
            "left": self._time_left(trainer),
        }
        return ", ".join(f"{name} {value}" for name, value in values.items() if value)


def _is_watched() -> bool:
    """Tell a terminal or a notebook, where a bar can be drawn, from a log file and from CI, which may look like a terminal."""
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return "ipykernel" in sys.modules or is_terminal and os.environ.get("CI", "false").lower() in ("", "0", "false")


def _gpu_memory(device: torch.device) -> str:
    """Most memory used so far of what the GPU has."""
    if device.type != "cuda":
        return ""
    used, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return f"{used / 2**30:.1f}/{total / 2**30:.0f}G"
