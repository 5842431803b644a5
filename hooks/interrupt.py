"""End a run in good order on a signal or at the end of its time budget."""

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

from engine.batches import WaitingEnded
from engine.hook import Hook
from engine.trainer import Trainer
from engine.watch import watch

logger = logging.getLogger(__name__)

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class InterruptHook(Hook):
    """Stop after the current step on SIGTERM, SIGINT, SIGUSR1 or SIGHUP, or after `max_hours`, so that a checkpoint is written.

    A signal to any rank stops all at the same step; one that waits for data waits no longer. A second SIGINT raises
    KeyboardInterrupt at once. SIGHUP is left alone where it is ignored, as under nohup.

    Args:
        max_hours: time budget from the start of training, which torchrun's restarts do not renew; 0: none.
    """

    def __init__(self, *, max_hours: float = 0) -> None:
        if max_hours < 0:
            raise ValueError(f"InterruptHook: max_hours={max_hours}; at least 0")
        self.max_hours = max_hours
        self._trainer: Trainer | None = None
        self._signal: int | None = None
        self._deadline = float("inf")
        self._previous: dict[int, Any] = {}

    def before_train(self, trainer: Trainer) -> None:
        self._trainer = trainer
        if self.max_hours > 0:
            running = watch()
            started = running.board.put("started", str(time.time()), lasting=True) if running else time.time()
            self._deadline = float(started) + self.max_hours * 3600
        if threading.current_thread() is not threading.main_thread():
            logger.warning("training does not run in the main thread: signals will not stop it in good order")
            return
        for number in SIGNALS:
            if number != getattr(signal, "SIGHUP", None) or signal.getsignal(number) != signal.SIG_IGN:
                self._previous.setdefault(number, signal.signal(number, self._note))

    def after_step(self, trainer: Trainer) -> None:
        if time.time() > self._deadline:
            trainer.interrupt(f"the time budget of {self.max_hours:g} hours is used up")

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.after_step(trainer)

    def close(self) -> None:
        for number, handler in self._previous.items():
            # None: it was installed by something else than Python, which cannot be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous, self._trainer = {}, None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        if self._trainer is None:
            return
        self._trainer.interrupt(f"received {signal.Signals(number).name}")
        if self._trainer.is_waiting_for_data:
            raise WaitingEnded
