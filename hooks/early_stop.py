"""Stop a run whose metric no longer improves."""

import logging
import math
from typing import Any

from engine.hook import Hook
from engine.trainer import Trainer
from hooks.monitor import direction, warn_of_missing

logger = logging.getLogger(__name__)


class EarlyStopHook(Hook):
    """Stop after `patience` evaluations in a row that are not better than the best by more than `min_delta`.

    What counts is the better finite one of the regular and the EMA metric (see `hooks.monitor.direction`); with `use_ema` the EMA
    metric, and the regular one only where that is missing. An evaluation with neither does not count. A resumed run decides again
    about the last evaluation, by its own settings: one that was stopped stays so, and one with more patience goes on.

    Args:
        check_finite: stop at once when the value is not finite; otherwise it counts as not better.
        stopping_threshold: stop at once where the metric is better.
        divergence_threshold: stop at once where it is worse.
        verbose: log what each evaluation means: better, or not and how far the patience goes, or not counted and why.
        skip_first_epochs: evaluations after so many epochs from the start do not count.

    Attributes:
        found_non_finite: whether that is what stopped the run.
    """

    def __init__(
        self,
        patience: int = 10,
        min_delta: float = 0.001,
        *,
        use_ema: bool = False,
        monitor_regular: str = "val/mAP_50_95",
        monitor_ema: str = "val/ema_mAP_50_95",
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        verbose: bool = False,
        skip_first_epochs: int = 0,
    ) -> None:
        if patience < 1 or min_delta < 0:
            raise ValueError(
                f"EarlyStopHook: patience={patience}, min_delta={min_delta}; patience is 1 or more, min_delta 0 or more"
            )
        self.patience, self.min_delta = patience, min_delta
        self.use_ema = use_ema
        self.monitor_regular, self.monitor_ema = monitor_regular, monitor_ema
        self.check_finite = check_finite
        self.stopping_threshold, self.divergence_threshold = stopping_threshold, divergence_threshold
        self.verbose, self.skip_first_epochs = verbose, skip_first_epochs
        self.found_non_finite = False
        self.sign = direction(monitor_ema if use_ema else monitor_regular)
        self.best = -math.inf  # where less is better, this and the following values are negated
        self.num_bad = 0  # evaluations since the best
        self._last: float | None = None  # value that was looked at last
        self._is_resumed = False
        self._has_warned = False

    def before_train(self, trainer: Trainer) -> None:
        if self._is_resumed and self._last is not None:
            self._stop(trainer, self._stop_at_once(self._last) or self._out_of_patience())
        self._is_resumed = False

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if 0 < trainer.epoch <= self.skip_first_epochs:
            self._say("epoch %d is one of the first %d (skip_first_epochs), not counted", trainer.epoch, self.skip_first_epochs)
            return
        value = self._effective(metrics)
        if value is None:
            self._say("the evaluation has neither %s nor %s, not counted", self.monitor_regular, self.monitor_ema)
            if not self._has_warned:
                warn_of_missing("early stopping", (self.monitor_regular, self.monitor_ema), metrics)
                self._has_warned = True
            return
        self._last = float(value)
        self._stop(trainer, self._stop_at_once(value) or self._stop_for_patience(value))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "num_bad": self.num_bad, "last": self._last, "follows": self._follows()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("follows", self._follows()) != self._follows():
            logger.warning("early stopping: it followed %s and follows %s now, which it sees for the first time",
                           *(" and ".join(names) for names in (state["follows"], self._follows())))
            return
        self.best, self.num_bad, self._last = state["best"], state["num_bad"], state.get("last")
        self._is_resumed = True

    def _follows(self) -> list[str]:
        return [self.monitor_ema] if self.use_ema else [self.monitor_regular, self.monitor_ema]

    def _stop(self, trainer: Trainer, reason: str | None) -> None:
        if reason:
            self._say("the run stops here, %s", reason.removeprefix("early stop: "))
            trainer.stop(reason)

    def _effective(self, metrics: dict[str, float]) -> float | None:
        if self.use_ema and self.monitor_ema in metrics:
            return self.sign * metrics[self.monitor_ema]
        values = [self.sign * metrics[name] for name in (self.monitor_regular, self.monitor_ema) if name in metrics]
        return max((value for value in values if math.isfinite(value)), default=values[0] if values else None)

    def _stop_at_once(self, value: float) -> str | None:
        shown = self.sign * value
        if self.check_finite and not math.isfinite(value):
            self.found_non_finite = True
            return f"early stop: the metric is {shown}"
        above, below = ("above", "below")[:: self.sign]
        if self.stopping_threshold is not None and value > self.sign * self.stopping_threshold:
            return f"early stop: the metric {shown:.4f} is {above} stopping_threshold {self.stopping_threshold}"
        if self.divergence_threshold is not None and value < self.sign * self.divergence_threshold:
            return f"early stop: the metric {shown:.4f} is {below} divergence_threshold {self.divergence_threshold}"
        return None

    def _stop_for_patience(self, value: float) -> str | None:
        if math.isfinite(value) and value - self.min_delta > self.best:
            self.best, self.num_bad = value, 0
            self._say("%.4f is the best so far", self.sign * value)
            return None
        self.num_bad += 1
        self._say("%.4f, the best is %.4f; %d of %d evaluations in a row without a better one", self.sign * value,
                  self.sign * self.best, self.num_bad, self.patience)
        return self._out_of_patience()

    def _out_of_patience(self) -> str | None:
        if self.num_bad < self.patience:
            return None
        return f"early stop: {self.num_bad} evaluations in a row were not better than {self.sign * self.best:.4f}"

    def _say(self, decision: str, *values: Any) -> None:
        if self.verbose:
            logger.info(f"early stopping: {decision}", *values)
