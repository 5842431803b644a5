"""A run from its configuration: train, evaluate and export. The only place that knows the detector, the loop and the hooks.

The names below are imported when they are first asked for, so that a command line answers before torch has been loaded.
"""

from typing import TYPE_CHECKING

from rfdetr.lazy import lazy_names

if TYPE_CHECKING:
    from rfdetr.losses.config import LossConfig
    from rfdetr.training.assemble import build_trainer
    from rfdetr.training.config import DetectorConfig, RunConfig
    from rfdetr.training.evaluation import evaluate
    from rfdetr.training.exporting import export
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
else:  # a type checker would take any name for one of these
    __all__, __getattr__, __dir__ = lazy_names(__name__, {
        "assemble": ("build_trainer",),
        "config": ("DetectorConfig", "LossConfig", "RunConfig"),
        "evaluation": ("evaluate",),
        "exporting": ("export",),
        "run": ("train",),
        "sections": ("DataConfig", "DropConfig", "EMAConfig", "EarlyStoppingConfig", "EvalConfig", "LogConfig", "OptimConfig",
                     "TrainConfig"),
    })
