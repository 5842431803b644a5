"""Settings that change nothing in a given run, which their user should know."""

import logging
from dataclasses import fields

from rfdetr.schedules import SCHEDULES
from rfdetr.training.config import RunConfig
from rfdetr.training.sections import MIXED

logger = logging.getLogger(__name__)


def warn_of_settings_without_effect(config: RunConfig) -> None:
    """Name all of them in one line."""
    if found := settings_without_effect(config):
        reasons: dict[str, list[str]] = {}
        for name, reason in found.items():
            reasons.setdefault(reason, []).append(name)
        logger.warning("settings without effect in this run: %s",
                       "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items()))


def settings_without_effect(config: RunConfig) -> dict[str, str]:
    """Return ``section.field`` -> why it changes nothing, of the fields that are not at their defaults."""
    idle = {}
    for section, reason, names in _idle(config):
        values = getattr(config, section)
        idle |= {f"{section}.{name}": reason for name in names if getattr(values, name) != getattr(type(values)(), name)}
    if config.optim.warmup_epochs > config.train.epochs:
        idle["optim.warmup_epochs"] = f"the learning rate never gets to its full height: the run has {config.train.epochs} epochs"
    return idle


def _idle(config: RunConfig) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return section, reason and fields of what is switched off."""
    data, optim, drop = config.data, config.optim, config.drop
    all_but = {name: tuple(field.name for field in fields(getattr(config, name)) if field.name != "enabled")
               for name in ("ema", "early_stopping")}
    is_off = {
        ("ema", "ema.enabled is false", all_but["ema"]): not config.ema.enabled,
        ("early_stopping", "early_stopping.enabled is false", all_but["early_stopping"]): not config.early_stopping.enabled,
        ("optim", f"optim.schedule is {optim.schedule}", ("lr_drop",)): optim.schedule != "step",
        ("optim", f"optim.schedule is {optim.schedule}", ("lr_min_factor",)):
            optim.schedule not in SCHEDULES or optim.schedule == "step",
        ("data", "data.multi_scale is false", ("expanded_scales",)): not data.multi_scale,
        ("data", "nothing is mixed", ("mix_off_epochs",)): not any(getattr(data, name) for name in MIXED),
        ("data", "data.sampling is uniform", ("repeat_threshold",)): data.sampling == "uniform",
        ("data", "data.num_workers is 0", ("prefetch_factor", "persistent_workers", "start_method")): data.num_workers == 0,
        ("loss", f"{config.model.variant} has no masks", ("mask_ce_loss_coef", "mask_dice_loss_coef", "mask_point_sample_ratio")):
            not config.model.architecture().segmentation_head,
        ("loss", "there is one query group", ("sum_group_losses",)): config.model.architecture().group_detr == 1,
        ("drop", "drop.cutoff_epoch is 0, so nothing is dropped", ("mode", "drop_path", "dropout")):
            drop.mode == "early" and drop.cutoff_epoch == 0,
        ("drop", "drop.drop_path and drop.dropout are 0", ("mode", "schedule", "cutoff_epoch")):
            drop.drop_path == 0 and drop.dropout == 0,
    }
    return [key for key, off in is_off.items() if off]
