"""Metrics of a detector: COCO's average precision, the F1 sweep over confidence thresholds; confusion."""

from rfdetr.evaluation.coco import CocoMetrics
from rfdetr.evaluation.f1 import f1_sweep
from rfdetr.evaluation.matching import ClassMatches
from rfdetr.evaluation.metrics import DetectionMetrics, absolute_targets

__all__ = ["ClassMatches", "CocoMetrics", "DetectionMetrics", "absolute_targets", "f1_sweep"]
