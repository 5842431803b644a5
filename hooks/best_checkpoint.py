"""Keep the weights of the best evaluation, of the regular model and of its average, and the better of the two."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from engine.checkpoint import save_checkpoint
from engine.distributed import barrier, is_main_process
from engine.files import replacing, sweep_leftovers
from engine.hook import Hook
from hooks.monitor import warn_of_missing

if TYPE_CHECKING:
    from engine.trainer import Trainer

logger = logging.getLogger(__name__)


def _plain_payload(model: nn.Module) -> dict[str, Any]:
    return {"model": model.state_dict(), "args": {}}


class BestCheckpointHook(Hook):
    """Write ``checkpoint_best_regular.pth`` and ``checkpoint_best_ema.pth`` when their metric is strictly better than before.

    At the end ``checkpoint_best_total.pth`` is a copy of the better one; the EMA's only if its metric is strictly greater.

    Args:
        payload: turns a model into what a file holds beside ``epoch`` (finished epochs) and ``metrics``; at least
            ``model`` and ``args``.
        monitor_regular, monitor_ema: the metric of each model; more is better, values that are not finite are never best.
        skip_first_epochs: evaluations after so many epochs from the start do not count.
    """

    writes = ("checkpoint_best_regular.pth", "checkpoint_best_ema.pth", "checkpoint_best_total.pth")

    def __init__(
        self,
        payload: Callable[[nn.Module], dict[str, Any]] | None = None,
        *,
        monitor_regular: str = "val/mAP_50_95",
        monitor_ema: str = "val/ema_mAP_50_95",
        skip_first_epochs: int = 0,
    ) -> None:
        self.payload = payload or _plain_payload
        self.skip_first_epochs = skip_first_epochs
        self.monitors = {"regular": monitor_regular, "ema": monitor_ema}
        self.best = dict.fromkeys(self.monitors, -math.inf)
        self._has_warned = False

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if not self._has_warned and not metrics.keys() & set(self.monitors.values()):
            warn_of_missing("best checkpoint", tuple(self.monitors.values()), metrics)
            self._has_warned = True
        if 0 < trainer.epoch <= self.skip_first_epochs:
            return
        for name, monitor in self.monitors.items():
            value = metrics.get(monitor, -math.inf)
            if name in trainer.eval_models and math.isfinite(value) and value > self.best[name]:
                self.best[name] = float(value)
                if is_main_process():
                    self._save(trainer, name, metrics)

    def after_train(self, trainer: Trainer) -> None:
        if is_main_process():
            written = [name for name in ("regular", "ema") if self.best[name] > -math.inf and _best_path(trainer, name).exists()]
            if written:
                winner = max(written, key=self.best.get)  # the first of equal ones: the regular
                sweep_leftovers(_best_path(trainer, "total"))
                with replacing(_best_path(trainer, "total")) as temporary:
                    shutil.copyfile(_best_path(trainer, winner), temporary)
                logger.info("best weights: %s, %s %.4f", winner, self.monitors[winner], self.best[winner])
        barrier()  # whatever comes next may read the file on any rank

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = {name: state["best"].get(name, -math.inf) for name in self.monitors}

    def _save(self, trainer: Trainer, name: str, metrics: dict[str, float]) -> None:
        content = {**self.payload(trainer.eval_models[name]), "epoch": trainer.epoch, "metrics": dict(metrics)}
        save_checkpoint(content, _best_path(trainer, name))


def _best_path(trainer: Trainer, name: str) -> Path:
    return trainer.output_dir / f"checkpoint_best_{name}.pth"
