"""Lower the learning rate when a metric no longer improves."""

import logging
import math
from typing import Any

from engine.hook import Hook
from engine.trainer import Trainer
from hooks.monitor import direction, warn_of_missing

logger = logging.getLogger(__name__)


class PlateauHook(Hook):
    """Multiply all learning rates by `factor` after `patience` evaluations in a row that are not better than the best.

    The schedule goes on underneath, so the scheduler has to be a LambdaLR. A resumed run goes on from its best value, its count
    and its learning rates; with another `metric` it starts to look for the best one anew.

    Args:
        metric: the whole name, such as "val/mAP_50_95" or "val/ema_loss"; see `hooks.monitor.direction`.
        min_delta: what counts as better.
        min_scale: the learning rates are never less than this share of what they would be without the hook.

    Attributes:
        scale: what the learning rates are multiplied by now.
    """

    def __init__(self, metric: str, factor: float = 0.1, patience: int = 3, *, min_delta: float = 0.0, min_scale: float = 0.0
                 ) -> None:
        self.metric, self.factor, self.patience = metric, factor, patience
        self.min_delta, self.min_scale = min_delta, min_scale
        self.scale, self.best, self.num_bad = 1.0, -math.inf, 0
        self._has_warned = False

    def before_train(self, trainer: Trainer) -> None:
        if not hasattr(trainer.lr_scheduler, "lr_lambdas"):
            raise ValueError(f"PlateauHook: the schedule is {type(trainer.lr_scheduler).__name__}; it has to be a LambdaLR")
        self._apply(trainer)

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if self.metric not in metrics:
            if not self._has_warned:
                warn_of_missing("optim.schedule plateau", (self.metric,), metrics)
                self._has_warned = True
            return
        value = direction(self.metric) * metrics[self.metric]
        if math.isfinite(value) and value - self.min_delta > self.best:
            self.best, self.num_bad = float(value), 0
            return
        self.num_bad += 1
        if self.num_bad >= self.patience:
            self.num_bad = 0
            lower = max(self.scale * self.factor, self.min_scale)
            if lower < self.scale:
                self.scale = lower
                self._apply(trainer)
                logger.info("learning rates times %g: %s has not been better than %.4f in %d evaluations", lower, self.metric,
                            direction(self.metric) * self.best, self.patience)

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "best": self.best, "num_bad": self.num_bad, "metric": self.metric}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale = state["scale"]
        if state["metric"] == self.metric:
            self.best, self.num_bad = state["best"], state["num_bad"]

    def _apply(self, trainer: Trainer) -> None:
        """Put the scale into the scheduler and into the learning rates of the next step; any number of times."""
        scheduler: Any = trainer.lr_scheduler
        scheduler.base_lrs = [group["initial_lr"] * self.scale for group in trainer.optimizer.param_groups]
        for group, base, factor in zip(trainer.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
            group["lr"] = base * factor(scheduler.last_epoch)
