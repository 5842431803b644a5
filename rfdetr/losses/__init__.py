"""What a detector is trained with: `HungarianMatcher` and `SetCriterion`."""

from rfdetr.losses.criterion import SetCriterion
from rfdetr.losses.matcher import HungarianMatcher

__all__ = ["HungarianMatcher", "SetCriterion"]
