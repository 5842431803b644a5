"""End a run in good order on a signal or at the end of its time budget."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from engine.distributed import all_reduce_sum, is_distributed
from engine.hook import Hook

if TYPE_CHECKING:
    from engine.trainer import Trainer

logger = logging.getLogger(__name__)

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class InterruptHook(Hook):
    """Stop after the current step on SIGTERM, SIGINT or SIGUSR1, or after `max_hours`, so that a checkpoint can be written.

    A second SIGINT raises KeyboardInterrupt at once. With several ranks a signal to any of them stops all at the same step.

    Args:
        max_hours: time budget from the start of training; 0: none.
        check_every: with several ranks, steps between asking all of them (a small message that waits for the device).
    """

    def __init__(self, *, max_hours: float = 0, check_every: int = 10) -> None:
        if max_hours < 0 or check_every < 1:
            raise ValueError(f"InterruptHook: max_hours={max_hours}, check_every={check_every}; at least 0 and 1")
        self.max_hours = max_hours
        self.check_every = check_every
        self._signal: int | None = None
        self._deadline = float("inf")
        self._previous: dict[int, Any] = {}

    def before_train(self, trainer: Trainer) -> None:
        if self.max_hours > 0:
            self._deadline = time.monotonic() + self.max_hours * 3600
        if threading.current_thread() is not threading.main_thread():
            logger.warning("training does not run in the main thread: signals will not stop it in good order")
            return
        for number in SIGNALS:
            previous = signal.signal(number, self._note)
            self._previous.setdefault(number, previous)

    def after_step(self, trainer: Trainer) -> None:
        is_epoch_end = trainer.epoch_step == trainer.steps_per_epoch  # known before an evaluation starts
        if not is_distributed() or is_epoch_end or trainer.step % self.check_every == 0:
            self._stop_if_asked(trainer)

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._stop_if_asked(trainer)  # the signal may have come during the evaluation

    def close(self) -> None:
        for number, handler in self._previous.items():
            # None: it was installed by something else than Python, which cannot be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if trainer.interrupted:
            return
        reason = self._reason()
        if is_distributed():
            asked = all_reduce_sum(torch.tensor(float(reason is not None), device=trainer.device))
            reason = reason or ("another process was asked to stop" if asked.item() else None)  # sync point
        if reason:
            logger.warning("stopping after step %d: %s", trainer.step, reason)
            trainer.interrupt(reason)

    def _reason(self) -> str | None:
        if self._signal is not None:
            return f"received {signal.Signals(self._signal).name}"
        if time.monotonic() > self._deadline:
            return f"the time budget of {self.max_hours:g} hours is used up"
        return None
