"""A run from its configuration: train, evaluate, predict. The only place that knows the detector, the loop and the hooks.

The names below are imported when they are first asked for, so that a command line answers before torch has been loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfdetr.losses.config import LossConfig
    from rfdetr.training.assemble import build_trainer
    from rfdetr.training.config import DetectorConfig, RunConfig
    from rfdetr.training.evaluation import evaluate
    from rfdetr.training.prediction import predict
    from rfdetr.training.run import train
    from rfdetr.training.sections import (
        DataConfig,
        DropConfig,
        EarlyStoppingConfig,
        EMAConfig,
        EvalConfig,
        LogConfig,
        OptimConfig,
        TrainConfig,
    )

__all__ = [
    "DataConfig", "DetectorConfig", "DropConfig", "EMAConfig", "EarlyStoppingConfig", "EvalConfig", "LogConfig", "LossConfig",
    "OptimConfig", "RunConfig", "TrainConfig", "build_trainer", "evaluate", "predict", "train",
]
_HOMES = {
    "rfdetr.losses.config": ("LossConfig",),
    "rfdetr.training.assemble": ("build_trainer",),
    "rfdetr.training.config": ("DetectorConfig", "RunConfig"),
    "rfdetr.training.evaluation": ("evaluate",),
    "rfdetr.training.prediction": ("predict",),
    "rfdetr.training.run": ("train",),
    "rfdetr.training.sections": ("DataConfig", "DropConfig", "EMAConfig", "EarlyStoppingConfig", "EvalConfig", "LogConfig",
                                 "OptimConfig", "TrainConfig"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = found = getattr(importlib.import_module(home), name)
            return found
    raise AttributeError(f"module 'rfdetr.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
