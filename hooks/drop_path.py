"""Stochastic depth and dropout whose rates follow a schedule over the run."""

import numpy as np

from engine.hook import Hook
from engine.trainer import Trainer


def drop_schedule(rate: float, epochs: int, steps_per_epoch: int, cutoff_epoch: int, mode: str, schedule: str) -> np.ndarray:
    """Return the drop rate of every step, (epochs * steps_per_epoch,) float64.

    Args:
        mode: "standard", `rate` all the time; "early", until `cutoff_epoch` and 0 after it; "late", 0 until then.
        schedule: "constant", or "linear" (mode "early" only): falling from `rate` to 0 at the cutoff.

    Raises:
        ValueError: an unknown name, or a number out of range. NotImplementedError: "late" with "linear".
    """
    if mode not in ("standard", "early", "late"):
        raise ValueError(f"drop mode: {mode!r} is not one of standard, early, late")
    if epochs < 1 or steps_per_epoch < 1:
        raise ValueError(f"drop schedule: {epochs} epochs of {steps_per_epoch} steps; both must be 1 or more")
    if mode == "standard":
        return np.full(epochs * steps_per_epoch, rate)
    if not 0 <= cutoff_epoch <= epochs:
        raise ValueError(f"drop cutoff_epoch: {cutoff_epoch} is outside the run of {epochs} epochs")
    if schedule not in ("constant", "linear"):
        raise ValueError(f"drop schedule: {schedule!r} is not one of constant, linear")
    num_early = cutoff_epoch * steps_per_epoch
    rates = np.zeros(epochs * steps_per_epoch)
    if mode == "early":
        rates[:num_early] = rate if schedule == "constant" else np.linspace(rate, 0, num_early)
    elif schedule == "constant":
        rates[num_early:] = rate
    else:
        raise NotImplementedError('drop schedule: "linear" is not possible with mode "late"; use "constant"')
    return rates


class DropPathHook(Hook):
    """Set drop-path and dropout rates before each step; a rate that is 0 throughout leaves the model as it was built.

    Args:
        drop_path: rate of the last ViT block, for ``unwrapped_model.update_drop_path``.
        dropout: rate of the decoder, for ``unwrapped_model.update_dropout``.
        cutoff_epoch, mode, schedule: see `drop_schedule`; they hold for both rates.
    """

    def __init__(
        self,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        *,
        cutoff_epoch: int = 0,
        mode: str = "standard",
        schedule: str = "constant",
    ) -> None:
        if not 0 <= drop_path < 1 or not 0 <= dropout < 1:
            raise ValueError(f"DropPathHook: drop_path={drop_path}, dropout={dropout}; rates are 0 or more and below 1")
        drop_schedule(0.0, max(1, cutoff_epoch), 1, cutoff_epoch, mode, schedule)  # refuses wrong names now, not at the start
        self.drop_path, self.dropout = drop_path, dropout
        self.schedule = (cutoff_epoch, mode, schedule)
        self._tables: dict[str, np.ndarray] | None = None
        self._current: dict[str, float] = {}

    def before_step(self, trainer: Trainer, batches: list) -> None:
        if self._tables is None:
            self._tables = self._make_tables(trainer)
        for name, table in self._tables.items():
            if trainer.step < len(table) and table[trainer.step] != self._current.get(name):
                self._current[name] = float(table[trainer.step])
                getattr(trainer.unwrapped_model, f"update_{name}")(self._current[name])

    def _make_tables(self, trainer: Trainer) -> dict[str, np.ndarray]:
        rates = {"drop_path": self.drop_path, "dropout": self.dropout}
        return {
            name: drop_schedule(rate, trainer.max_epochs, trainer.steps_per_epoch, *self.schedule)
            for name, rate in rates.items()
            if rate > 0
        }
