"""A progress bar for each epoch, on terminals and in notebooks."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from engine.distributed import is_main_process, world_size
from engine.hook import Hook

if TYPE_CHECKING:
    from engine.trainer import Trainer


class ProgressHook(Hook):
    """Show loss, learning rate, images/s, the share of time spent waiting for data, GPU memory, and the time left of the run.

    Args:
        every_steps: refresh the values every so many steps (each waits for the device).
        enabled: None shows the bar on a terminal and in a notebook. Ranks above 0 never show one.
    """

    def __init__(self, *, every_steps: int = 10, enabled: bool | None = None) -> None:
        self.every_steps = every_steps
        self.enabled = enabled
        self._bar: tqdm | None = None
        self._start: tuple[float, int, int, float] = (0.0, 0, 0, 0.0)  # time, steps, images, seconds of waiting

    def before_train(self, trainer: Trainer) -> None:
        self._start = (time.perf_counter(), trainer.step, trainer.num_images, trainer.data_seconds)

    def before_epoch(self, trainer: Trainer) -> None:
        if is_main_process() and (_is_watched() if self.enabled is None else self.enabled):
            self._bar = tqdm(
                total=trainer.steps_per_epoch,
                initial=trainer.epoch_step,
                desc=f"epoch {trainer.epoch + 1}/{trainer.max_epochs}",
                unit="step",
                dynamic_ncols=True,
            )

    def after_step(self, trainer: Trainer) -> None:
        if self._bar is None:
            return
        if trainer.step % self.every_steps == 0:
            self._bar.set_postfix_str(self._values(trainer), refresh=False)
        self._bar.update(1)

    def after_epoch(self, trainer: Trainer) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _values(self, trainer: Trainer) -> str:
        started, step, num_images, data_seconds = self._start
        seconds = time.perf_counter() - started
        done = trainer.step - step
        values = {
            "loss": f"{trainer.losses['loss'].item():.3f}" if "loss" in trainer.losses else "",  # sync point
            "lr": f"{trainer.optimizer.param_groups[0]['lr']:.1e}",
            "img/s": f"{(trainer.num_images - num_images) * world_size() / seconds:.1f}",
            "wait": f"{(trainer.data_seconds - data_seconds) / seconds:.0%}",
            "mem": _gpu_memory(trainer.device),
            "left": tqdm.format_interval(seconds / done * (trainer.max_steps - trainer.step)) if done else "",
        }
        return ", ".join(f"{name} {value}" for name, value in values.items() if value)


def _is_watched() -> bool:
    """Tell a terminal or a notebook, where a bar can be drawn, from a log file."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _gpu_memory(device: torch.device) -> str:
    """Most memory used so far of what the GPU has."""
    if device.type != "cuda":
        return ""
    used, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    return f"{used / 2**30:.1f}/{total / 2**30:.0f}G"
