"""Keep the weights of the best evaluations: of the regular model and of its average, the better of the two, and some more."""

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from engine.background import to_host, try_saving
from engine.checkpoint import CheckpointError, load_checkpoint
from engine.distributed import barrier, is_main_process
from engine.files import replacing
from engine.hook import Hook
from engine.trainer import Trainer
from hooks.monitor import direction, warn_of_missing

logger = logging.getLogger(__name__)


class BestCheckpointHook(Hook):
    """Write ``checkpoint_best_regular.pth`` and ``checkpoint_best_ema.pth`` when their metric is strictly better than before.

    At the end ``checkpoint_best_total.pth`` is a copy of the better one; the EMA's only if its metric is strictly greater.

    A resumed run goes on from the best values of its checkpoint where they are those of the same metric, and their files are
    there. A file that cannot be written is kept in memory, and tried again after each epoch.

    Args:
        payload: turns a model into what a file holds beside ``epoch`` (finished epochs) and ``metrics``; at least
            ``model`` and ``args``.
        monitor_regular, monitor_ema: the metric of each model, see `hooks.monitor.direction`; values that are not finite are
            never best.
        skip_first_epochs: evaluations after so many epochs from the start do not count.
        keep_top: so many of the best evaluations have a file each, of the better model: ``checkpoint_best_step_N.pth``. A resumed
            run that keeps fewer deletes the others; one that keeps none, or follows another metric, leaves them all.

    Attributes:
        best_steps: (score, step) of each of those, the best first.
        save_failed: whether best weights are not on the disk.
    """

    writes = ("checkpoint_best_regular.pth", "checkpoint_best_ema.pth", "checkpoint_best_total.pth")

    def __init__(
        self,
        payload: Callable[[nn.Module], dict[str, Any]] | None = None,
        *,
        monitor_regular: str = "val/mAP_50_95",
        monitor_ema: str = "val/ema_mAP_50_95",
        skip_first_epochs: int = 0,
        keep_top: int = 0,
    ) -> None:
        self.payload = payload or (lambda model: {"model": model.state_dict(), "args": {}})
        self.skip_first_epochs, self.keep_top = skip_first_epochs, keep_top
        self.best_steps: list[tuple[float, int]] = []
        self.monitors = {"regular": monitor_regular, "ema": monitor_ema}
        self.best = dict.fromkeys(self.monitors, -math.inf)  # where less is better, negated
        self._has_warned = False
        self._is_resumed = False
        self._unsaved: dict[str, dict[str, Any]] = {}  # content of files that could not be written
        self._lacks_total = False

    @property
    def save_failed(self) -> bool:
        return bool(self._unsaved) or self._lacks_total

    def before_train(self, trainer: Trainer) -> None:
        if self._is_resumed and is_main_process():
            for name in self.best:
                self._check_file(trainer, name)
        if self._is_resumed and self.keep_top:
            self._drop_others(trainer)
        self._is_resumed = False

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if not self._has_warned and not metrics.keys() & set(self.monitors.values()):
            warn_of_missing("best checkpoint", tuple(self.monitors.values()), metrics)
            self._has_warned = True
        if 0 < trainer.epoch <= self.skip_first_epochs:
            return
        scores = {name: direction(monitor) * float(metrics.get(monitor, math.nan)) for name, monitor in self.monitors.items()}
        scores = {name: score for name, score in scores.items() if name in trainer.eval_models and math.isfinite(score)}
        for name, score in scores.items():
            if score > self.best[name]:
                self.best[name] = score
                self._save(trainer, name, name, metrics)
        if scores and self.keep_top:
            self._keep(trainer, scores, metrics)

    def after_epoch(self, trainer: Trainer) -> None:
        self._try_again(trainer)

    def after_train(self, trainer: Trainer) -> None:
        if is_main_process():
            self._try_again(trainer)
            written = [name for name in ("regular", "ema") if self.best[name] > -math.inf and best_path(trainer, name).exists()]
            if written:
                winner = max(written, key=self.best.__getitem__)  # the first of equal ones: the regular
                self._copy_to_total(trainer, winner)
                logger.info("best weights: %s, %s %.4f", winner, self.monitors[winner], self._shown(winner))
        barrier()  # whatever comes next may read the file on any rank

    def state_dict(self) -> dict[str, Any]:
        best = {name: -math.inf if name in self._unsaved else value for name, value in self.best.items()}
        return {"best": best, "monitors": dict(self.monitors), "best_steps": [list(entry) for entry in self.best_steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        then = state.get("monitors", self.monitors)
        if then == self.monitors:
            self.best_steps = [tuple(entry) for entry in state.get("best_steps", ())]
        for name, monitor in self.monitors.items():
            value = state["best"].get(name, -math.inf)
            if then.get(name, monitor) != monitor and value > -math.inf:
                logger.warning("best checkpoint: %.4f was the best %.100s, and says nothing of %s", direction(then[name]) * value,
                               then[name], monitor)
                value = -math.inf
            self.best[name] = value
        self._is_resumed = True

    def _check_file(self, trainer: Trainer, name: str) -> None:
        """Forget a best value whose weights are not there; those of a later evaluation than the state's come up again."""
        path, best, problem = best_path(trainer, name), self.best[name], None
        if best == -math.inf:
            return
        try:
            found = load_checkpoint(path).get("metrics", {}).get(self.monitors[name], math.nan)
            if not direction(self.monitors[name]) * found >= best:
                problem = f"{path}: holds weights of {self.monitors[name]} {found:.4f}"
        except CheckpointError as error:
            problem = str(error)
        if problem is not None:
            logger.warning("%s; the best of this run, %.4f, is not there any more, and the next evaluation is its first", problem,
                           self._shown(name))
            self.best[name] = -math.inf

    def _shown(self, name: str) -> float:
        return direction(self.monitors[name]) * self.best[name]

    def kept_files(self, trainer: Trainer) -> list[Path]:
        """Return the files of the best evaluations, the best first, as far as they are there."""
        paths = [best_path(trainer, f"step_{step}") for _, step in self.best_steps]
        return [path for path in paths if path.exists()]

    def _keep(self, trainer: Trainer, scores: dict[str, float], metrics: dict[str, float]) -> None:
        """Keep the better model of this evaluation if it is one of the best, and delete what is no longer one of them."""
        model = max(scores, key=scores.__getitem__)
        entry = (scores[model], trainer.step)
        others = [other for other in self.best_steps if other[1] != trainer.step]
        self.best_steps = sorted([*others, entry], key=lambda entry: -entry[0])
        if entry in self.best_steps[: self.keep_top]:
            self._save(trainer, f"step_{trainer.step}", model, metrics)
        self._drop_others(trainer)

    def _drop_others(self, trainer: Trainer) -> None:
        self.best_steps, dropped = self.best_steps[: self.keep_top], self.best_steps[self.keep_top :]
        for _, step in dropped if is_main_process() else ():
            self._unsaved.pop(f"step_{step}", None)
            best_path(trainer, f"step_{step}").unlink(missing_ok=True)

    def _save(self, trainer: Trainer, name: str, model: str, metrics: dict[str, float]) -> None:
        if not is_main_process():
            return
        content = {**self.payload(trainer.eval_models[model]), "epoch": trainer.epoch, "metrics": dict(metrics)}
        self._unsaved.pop(name, None)
        if not try_saving(content, best_path(trainer, name)):
            self._unsaved[name], _ = to_host(content)

    def _try_again(self, trainer: Trainer) -> None:
        for name in list(self._unsaved):
            if try_saving(self._unsaved[name], best_path(trainer, name)):
                del self._unsaved[name]

    def _copy_to_total(self, trainer: Trainer, winner: str) -> None:
        total = best_path(trainer, "total")
        try:
            with replacing(total) as temporary:
                shutil.copyfile(best_path(trainer, winner), temporary)
        except OSError as error:
            logger.warning("%s could not be written (%s); %s holds the same weights", total, error.strerror or error,
                           best_path(trainer, winner).name)
            self._lacks_total = True


def best_path(trainer: Trainer, name: str) -> Path:
    """Return where the best weights of this name are."""
    return trainer.output_dir / f"checkpoint_best_{name}.pth"
