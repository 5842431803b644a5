"""RF-DETR in plain PyTorch: the detector, its losses, data, metrics and checkpoints, for anybody's training loop.

The names below are imported when they are first asked for, so that a command line answers before torch has been loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfdetr.build import build_criterion, build_model, build_postprocess
    from rfdetr.config import VARIANTS, ModelConfig
    from rfdetr.data import LabelMap
    from rfdetr.errors import InputError
    from rfdetr.losses.config import LossConfig
    from rfdetr.nested_tensor import NestedTensor
    from rfdetr.weights import LoadReport, checkpoint_payload, load_weights, official_state_dict

__all__ = [
    "VARIANTS",
    "InputError",
    "LabelMap",
    "LoadReport",
    "LossConfig",
    "ModelConfig",
    "NestedTensor",
    "build_criterion",
    "build_model",
    "build_postprocess",
    "checkpoint_payload",
    "load_weights",
    "official_state_dict",
]
_HOMES = {
    "build": ("build_criterion", "build_model", "build_postprocess"),
    "config": ("VARIANTS", "ModelConfig"),
    "data": ("LabelMap",),
    "errors": ("InputError",),
    "losses.config": ("LossConfig",),
    "nested_tensor": ("NestedTensor",),
    "weights": ("LoadReport", "checkpoint_payload", "load_weights", "official_state_dict"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"rfdetr.{home}"), name)
    raise AttributeError(f"module 'rfdetr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
