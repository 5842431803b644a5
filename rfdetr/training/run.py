"""The whole life of a run, from its configuration to its last file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.distributed import barrier, process_group
from rfdetr.training.assemble import build_trainer
from rfdetr.training.command_line import bad_input, shown_log
from rfdetr.training.config import RunConfig
from rfdetr.training.device import choose_device
from rfdetr.training.run_folder import check_folder, check_same_run, read_resume_state
from rfdetr.training.standard_hooks import UserHook


def train(
    config: RunConfig, hooks: Sequence[UserHook] = (), *, resume: str | None = None, overwrite: bool = False, **parts: Any
) -> dict[str, Any]:
    """Train from a configuration to the last file of the run; all that ``tools/train.py`` does.

    Args:
        hooks: your own, beside those of the configuration; hooks, or classes of hooks. A subclass of a standard hook takes that
            hook's place.
        resume: a checkpoint to go on from, or "auto": the newest valid one in ``train.output_dir``, if there is any.
        overwrite: replace the run that is in the folder.
        parts: `model`, `criterion`, `train_set`, `val_set`, `optimizer` of `build_trainer`.

    Returns:
        what results.json holds (see `FinishHook`).

    Raises:
        InputError: something that its user can put right; nothing was written.
        FloatingPointError: too many updates in a row were not finite.
    """
    folder = Path(config.train.output_dir)
    with shown_log(), process_group(choose_device(config)):
        check_folder(folder, resume=resume, overwrite=overwrite)
        barrier()  # every process has looked before the first one writes anything
        state = read_resume_state(folder, resume)
        trainer = build_trainer(config, hooks, overwrite=overwrite, resumed=state is not None, **parts)
        if state is not None:
            check_same_run(state, trainer.hooks[0].metadata)
            with bad_input("--resume: the checkpoint does not fit the settings of this run: "):
                trainer.load_state_dict(state)
        trainer.train()
        return trainer.hooks[-1].results
