"""The whole life of a run, from its configuration to its last file."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engine import Trainer
from engine.distributed import gather_objects, process_group
from rfdetr.errors import InputError
from rfdetr.training.assemble import build_trainer
from rfdetr.training.command_line import shown_log
from rfdetr.training.config import RunConfig
from rfdetr.training.device import choose_device
from rfdetr.training.ownership import owned, together
from rfdetr.training.parsing import plain_dict
from rfdetr.training.resume import (
    bring_along,
    check_agreement,
    check_same_run,
    load_state,
    other_settings,
    read_state,
    results_of_finished,
)
from rfdetr.training.run_folder import check_empty, has_only_begun, make_folder
from rfdetr.training.standard_hooks import UserHook


def train(
    config: RunConfig, hooks: Sequence[UserHook] = (), *, resume: str | None = None, overwrite: bool = False, **parts: Any
) -> dict[str, Any]:
    """Train from a configuration to the last file of the run; all that ``tools/train.py`` does.

    Args:
        hooks: your own, beside those of the configuration; hooks, or classes of hooks. A subclass of a standard hook takes that
            hook's place.
        resume: a checkpoint to go on from, or "auto": the newest valid one in ``train.output_dir``, if there is any. Its state
            goes on with the settings of `config`. Into another folder than the checkpoint's, which must not hold a run, the
            files of the run come along.
        overwrite: replace the run that is in the folder.
        parts: `model`, `criterion`, `train_set`, `val_set`, `optimizer` of `build_trainer`.

    Returns:
        what results.json holds (see `FinishHook`).

    Raises:
        InputError: something that its user can put right; nothing was written.
        FloatingPointError: too many updates in a row were not finite.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other: go on with the run that is there, or replace it")
    folder = Path(config.train.output_dir)
    with shown_log(), process_group(choose_device(config)):
        together(partial(make_folder, folder))
        with owned(folder):
            if not resume and not overwrite:
                together(partial(check_empty, folder))
            found = together(partial(read_state, folder, resume))
            check_agreement(found, plain_dict(config))
            overwrite = overwrite or (resume == "auto" and found is None and gather_objects(has_only_begun(folder))[0])
            trainer = build_trainer(config, hooks, overwrite=overwrite, resumed=found is not None, **parts)
            trainer.hooks[0].is_owned = True
            return _go_on(trainer, *found) if found is not None else _run(trainer)


def _go_on(trainer: Trainer, path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Go on with a run from its state."""
    folder_hook = trainer.hooks[0]
    check_same_run(state, folder_hook.metadata)
    different = other_settings(state, folder_hook.metadata["args"])
    load_state(trainer, state)
    if path.parent.resolve() != trainer.output_dir.resolve() and "foreign" not in state:
        folder_hook.prepare = partial(bring_along, path)
    finished = results_of_finished(trainer, different)
    return _run(trainer) if finished is None else finished


def _run(trainer: Trainer) -> dict[str, Any]:
    trainer.train()
    return trainer.hooks[-1].results
