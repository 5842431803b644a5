"""What a detector is trained with: `HungarianMatcher` and `SetCriterion`, made as `LossConfig` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rfdetr.lazy import lazy_names

if TYPE_CHECKING:
    from rfdetr.losses.config import LossConfig
    from rfdetr.losses.criterion import SetCriterion
    from rfdetr.losses.matcher import HungarianMatcher
else:  # a type checker would take any name for one of these
    __all__, __getattr__, __dir__ = lazy_names(__name__, {
        "config": ("LossConfig",), "criterion": ("SetCriterion",), "matcher": ("HungarianMatcher",)
    })
