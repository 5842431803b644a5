"""Write checkpoint.pth, from which a run goes on where it was."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

from engine.background import BackgroundSaver
from engine.distributed import gather_objects, is_distributed, is_main_process
from engine.hook import Hook
from engine.trainer import Trainer
from engine.watch import doing

logger = logging.getLogger(__name__)

FILE_NAME = "checkpoint.pth"


class CheckpointHook(Hook):
    """Save the trainer's whole state every so many epochs and steps, after each evaluation, and when training stops.

    Training goes on while a file is written; a save that fails is reported, and the next one tries again. An error of the data
    (in one process) costs no training either: the state is saved before it ends the run.

    Belongs after the hooks whose state matters and before the one that evaluates: an evaluation that crashes then costs no
    training, and what it changes (best values, patience) is saved in `after_eval`.

    Args:
        every_steps: save at every so many steps; 0: not within an epoch.
        every_epochs: save after every so many epochs (the last one always); 0: only the last one.
        keep_every_epochs: after every so many epochs the state also goes to ``checkpoint_epoch_N.pth``, which stays; 0: never.
        keep: how many earlier versions stay beside the file, in case the newest is damaged.
        metadata: what the file holds beside the state, such as args and label_map; plain values.

    Attributes:
        save_failed: whether the latest state is not on the disk.
    """

    writes = (FILE_NAME,)

    def __init__(
        self, *, every_steps: int = 0, every_epochs: int = 1, keep_every_epochs: int = 0, keep: int = 1,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if min(every_steps, every_epochs, keep_every_epochs, keep) < 0:
            raise ValueError(
                f"CheckpointHook: every_steps={every_steps}, every_epochs={every_epochs}, keep_every_epochs={keep_every_epochs}, "
                f"keep={keep}; all are 0 or more"
            )
        self.every_steps, self.every_epochs, self.keep = every_steps, every_epochs, keep
        self.keep_every_epochs = keep_every_epochs
        self.metadata = dict(metadata or {})
        self._saver = BackgroundSaver()
        self._saved_at: tuple[int, int] | None = None
        self._waits_for_data: Trainer | None = None  # between two steps, where the state can be saved
        self._started_at = 0

    @property
    def save_failed(self) -> bool:
        return self._saver.failed

    def before_train(self, trainer: Trainer) -> None:
        self._started_at = trainer.step

    def before_epoch(self, trainer: Trainer) -> None:
        self._waits_for_data = trainer

    def before_step(self, trainer: Trainer, batches: list) -> None:
        self._waits_for_data = None

    def after_step(self, trainer: Trainer) -> None:
        is_epoch_end = trainer.epoch_step == trainer.steps_per_epoch or trainer.is_finished
        if _is_due(trainer.step, self.every_steps) and not (is_epoch_end and self.every_epochs == 1):
            self._save(trainer)
        self._waits_for_data = None if is_epoch_end else trainer

    def after_epoch(self, trainer: Trainer) -> None:
        if _is_due(trainer.epoch, self.every_epochs) or trainer.is_finished:
            self._save(trainer)
        if trainer.epoch_step == 0 and _is_due(trainer.epoch, self.keep_every_epochs):
            self._save(trainer, f"checkpoint_epoch_{trainer.epoch:04}.pth")

    def after_eval(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._save(trainer)

    def after_train(self, trainer: Trainer) -> None:
        if self._saved_at != (trainer.epoch, trainer.step) or self._has_failed():
            self._save(trainer)
        self._saver.wait()

    def close(self) -> None:
        trainer, self._waits_for_data = self._waits_for_data, None
        is_error = isinstance(sys.exc_info()[1], Exception)
        if trainer is not None and is_error and not is_distributed() and trainer.step > self._started_at:
            if self._saved_at != (trainer.epoch, trainer.step):
                self._save(trainer)
            logger.warning("no batch comes after step %d, whose state is saved: go on with --resume auto", trainer.step)
        self._saver.wait()

    def _save(self, trainer: Trainer, name: str = FILE_NAME) -> None:
        doing("saving")
        state = {**self.metadata, **trainer.state_dict()}  # collective: every rank takes part
        if "ema" in trainer.eval_models:
            # the very tensors of EMAHook's state: torch.save writes them once
            state["ema_model"] = trainer.eval_models["ema"].state_dict()
        if is_main_process():
            self._saver.save(state, trainer.output_dir / name, keep=self.keep if name == FILE_NAME else 0)
        if name == FILE_NAME:
            self._saved_at = (trainer.epoch, trainer.step)

    def _has_failed(self) -> bool:
        """Tell on every rank whether the latest save has failed. Collective."""
        self._saver.wait()
        return any(gather_objects(self.save_failed))


def _is_due(count: int, every: int) -> bool:
    return every > 0 and count % every == 0
