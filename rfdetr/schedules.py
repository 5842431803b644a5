"""Learning rate schedules by name, as pure functions of the step; needs no torch."""

import math
from collections.abc import Mapping
from typing import Any

from rfdetr.errors import InputError

STEP_DROP = 0.1  # what the "step" schedule leaves of the learning rate
SCHEDULES: dict[str, dict[str, Any]] = {  # name -> its arguments in optim.schedule_args, with their defaults
    "step": {}, "cosine": {}, "flat_cosine": {"flat": 0.5}, "polynomial": {"power": 0.9},
    "plateau": {"metric": None, "factor": 0.1, "patience": 3, "min_delta": 0.0},
}  # fmt: skip
_RULES = {
    "flat": ("0 or more and below 1", lambda value: 0 <= value < 1),
    "power": ("above 0", lambda value: 0 < value < math.inf),
    "metric": ('the whole name of a metric, such as "val/loss", or null', lambda value: value is None or "/" in value),
    "factor": ("above 0 and below 1", lambda value: 0 < value < 1),
    "patience": ("a whole number, 1 or more", lambda value: type(value) is int and value >= 1),
    "min_delta": ("0 or more", lambda value: 0 <= value < math.inf),
}


def schedule_arguments(schedule: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a schedule of `SCHEDULES`, checked and completed.

    Raises:
        InputError: it does not take one of them, or not this value.
    """
    known = SCHEDULES[schedule]
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"optim.schedule_args: {schedule!r} takes {f'no {unknown[0]}, only' if known else 'none; it has'} "
                         f"{', '.join(known) or 'lr_drop, lr_min_factor, warmup_epochs'}")
    for name, value in given.items():
        rule, is_valid = _RULES[name]
        try:
            valid = is_valid(value)
        except TypeError:
            valid = False
        if not valid:
            raise InputError(f"optim.schedule_args: {name}: {value!r} is not possible; it must be {rule}")
    return {**known, **given}


def lr_multiplier(
    step: int,
    *,
    schedule: str,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    lr_drop: int = 100,
    min_factor: float = 0.0,
    flat: float = 0.5,
    power: float = 0.9,
) -> float:
    """Return the factor of every group's learning rate for optimizer step ``step``, counted from 0.

    All start with a linear warm-up from 0 over ``warmup_epochs``, and end at ``min_factor`` at ``total_steps``, where they stay.

    Args:
        schedule: "step": a tenth from epoch ``lr_drop`` on. "cosine": half a wave. "flat_cosine": constant for the share ``flat``
            of all steps, then half a wave (RTMDet, arXiv 2212.07784, section 4.1). "polynomial": (1 - progress) ** ``power``
            (ParseNet, arXiv 1506.04579). "plateau": constant; `hooks.PlateauHook` lowers it.
    """
    warmup_steps = int(steps_per_epoch * warmup_epochs)
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "step":
        return 1.0 if step < lr_drop * steps_per_epoch else STEP_DROP
    if schedule == "plateau":
        return 1.0
    start = max(warmup_steps, int(flat * total_steps)) if schedule == "flat_cosine" else warmup_steps
    progress = min(1.0, max(0, step - start) / max(1, total_steps - start))
    if schedule in ("cosine", "flat_cosine"):
        return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "polynomial":
        return min_factor + (1 - min_factor) * (1 - progress) ** power
    raise InputError(f"optim.schedule: unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
