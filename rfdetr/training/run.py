"""The whole life of a run, from its configuration to its last file."""

import gc
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engine import Trainer
from engine.distributed import is_distributed, process_group, world_size
from engine.watch import restart_count, watch
from rfdetr.errors import InputError
from rfdetr.training.assemble import build_trainer
from rfdetr.training.command_line import shown_log
from rfdetr.training.config import RunConfig
from rfdetr.training.device import choose_device
from rfdetr.training.memory import explain, with_batch_size
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
from rfdetr.training.run_folder import check_empty, made
from rfdetr.training.standard_hooks import UserHook

logger = logging.getLogger(__name__)

MAX_ROLLBACKS = 3
SEED_STEP = 1_000_003  # from the seed of one attempt to that of the next
STOPPED = "stopped"  # the note that a run was stopped in good order, for good
CHECKPOINT_FILES = "checkpoint*.pth"


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
        PeerError: another process failed.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other: go on with the run that is there, or replace it")
    _refuse_lone_tasks()
    folder = Path(config.train.output_dir)
    with shown_log(), process_group(choose_device(config), config.train.timeout_minutes):
        if (stopped := watch().board.get(STOPPED, lasting=True)) is not None:
            logger.warning("not started again by torchrun: %s", stopped)
            return {"status": "interrupted", "stop_reason": stopped}
        with made(folder), owned(folder):
            resume, overwrite = _after_a_restart(folder, resume, overwrite)
            for attempt in range(MAX_ROLLBACKS + 1):
                try:
                    seed = config.train.seed + attempt * SEED_STEP
                    reseeded = replace(config, train=replace(config.train, seed=seed))
                    return _train(reseeded, hooks, resume=resume, overwrite=overwrite, **parts)
                except FloatingPointError as error:
                    can_roll_back = config.train.on_bad_steps == "rollback" and attempt < MAX_ROLLBACKS
                    if not can_roll_back or read_state(folder, "auto") is None:
                        raise
                    logger.warning("%s. Rolling back to the last checkpoint, with other randomness (%d of at most %d times)",
                                   error, attempt + 1, MAX_ROLLBACKS)
                gc.collect()  # the loader's processes and the model of the failed attempt
                resume, overwrite = "auto", False


def _refuse_lone_tasks() -> None:
    """Refuse to be one of several processes that do not know of each other: each would train alone, in the same folder."""
    tasks = max(int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    if tasks > 1 and "RANK" not in os.environ and not is_distributed():
        raise InputError(f"{tasks} processes were started (by srun, say) without torchrun, so none knows of the others and each "
                         "would train alone; start one task a node, and in it torchrun: srun --ntasks-per-node=1 torchrun "
                         "--nnodes=... --nproc_per_node=... (for runs of their own: unset SLURM_STEP_NUM_TASKS WORLD_SIZE)")


def _train(config: RunConfig, hooks: Sequence[UserHook], *, resume: str | None, overwrite: bool, **parts: Any) -> dict[str, Any]:
    """Start a run, or go on with it, in the folder that this process owns."""
    folder = Path(config.train.output_dir)
    if not resume and not overwrite:
        together(partial(check_empty, folder))
    found = together(partial(read_state, folder, resume))
    check_agreement(found, plain_dict(config))
    config = _as_found_before(config, found)
    overwrite = overwrite or (resume == "auto" and found is None)  # what is there is from before the first save
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
    try:
        trainer.train()
    except RuntimeError as error:
        explain(error, trainer)
        raise
    if trainer.interrupted and not trainer.stop_reason.endswith("SIGTERM"):  # with that torchrun ends what it starts anew
        watch().board.put(STOPPED, trainer.stop_reason, lasting=True)
    return trainer.hooks[-1].results


def _as_found_before(config: RunConfig, found: tuple[Path, dict[str, Any]] | None) -> RunConfig:
    """Return the configuration with the batch size that "auto" was when the run began, unless other processes need another."""
    settings = (found[1].get("args") or {}).get("data") if found else None
    size = settings.get("batch_size") if isinstance(settings, dict) else None
    usable = config.data.batch_size == "auto" and type(size) is int and size > 0
    return with_batch_size(config, size) if usable and config.train.effective_batch % (size * world_size()) == 0 else config


def _after_a_restart(folder: Path, resume: str | None, overwrite: bool) -> tuple[str | None, bool]:
    """Return what to do in a folder: where torchrun has started the processes again, go on with the run that they had begun."""
    if restart_count() == 0 or not watch().was_begun(folder):
        return resume, overwrite
    if any(folder.glob(CHECKPOINT_FILES)):
        logger.warning("started again by torchrun: going on as with --resume auto")
        return "auto", False
    return resume, resume is None  # files of a run that had not saved anything
