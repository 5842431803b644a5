"""Going on from a training checkpoint of another program, Lightning's or the published engine's, for what it holds."""

import logging
from pathlib import Path
from typing import Any

from engine import Trainer
from hooks import EMAHook
from rfdetr.errors import InputError
from rfdetr.training.start import average_state
from rfdetr.weights import load_weights
from rfdetr.weights.reading import normalise, open_plain

logger = logging.getLogger(__name__)


def read_foreign(path: Path) -> dict[str, Any] | None:
    """Return what `read_checkpoint` would, with the number of finished epochs, None where the file is no such checkpoint."""
    try:
        raw = open_plain(path)
    except InputError:
        return None
    is_lightning = isinstance(raw, dict) and "pytorch-lightning_version" in raw
    is_legacy = isinstance(raw, dict) and "optimizer" in raw and "lr_scheduler" in raw and "epoch_step" not in raw
    if not is_lightning and not is_legacy:
        return None
    content = normalise(raw, str(path))
    finished = content["epoch"] or 0
    if type(raw.get("epoch")) is int:  # both write the index of the epoch that they have just finished
        finished = raw["epoch"] + 1
    return {**content, "epoch": finished, "step": 0, "foreign": "Lightning" if is_lightning else "the published engine"}


def continue_from(trainer: Trainer, content: dict[str, Any]) -> None:
    """Give a fresh trainer the weights, the average and the epoch of another program, and say what it does without."""
    load_weights(trainer.unwrapped_model, content)
    hooks = {}
    for hook in trainer.hooks:
        if isinstance(hook, EMAHook) and content["ema_model"] is not None:
            hooks[hook.name] = average_state(hook, trainer.unwrapped_model, content)
    state = trainer.state_dict()
    step = content["epoch"] * trainer.steps_per_epoch
    trainer.load_state_dict({**state, "epoch": content["epoch"], "step": step, "epoch_step": 0, "hooks": hooks, "rng": [],
                             "plan": None})  # so that the schedule is moved to that step
    logger.warning("resuming from a checkpoint of %s: its weights, %sand its %d finished epochs are taken. It lacks, or holds in "
                   "a form that does not fit: optimizer moments, best values, patience, random numbers; they start afresh",
                   content["foreign"], "their average, " if hooks else "", content["epoch"])
