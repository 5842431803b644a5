"""Metrics of a detector: COCO's average precision, the F1 sweep over confidence thresholds, confusion; and pictures of a run."""

from rfdetr.evaluation.coco import CocoMetrics
from rfdetr.evaluation.f1 import f1_sweep
from rfdetr.evaluation.matching import ClassMatches
from rfdetr.evaluation.metrics import DetectionMetrics, absolute_targets
from rfdetr.evaluation.run_pictures import RunPictures

__all__ = ["ClassMatches", "CocoMetrics", "DetectionMetrics", "RunPictures", "absolute_targets", "f1_sweep"]
