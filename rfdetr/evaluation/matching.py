"""Which detection found which target of its class at IoU 0.5, for the F1 sweep."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rfdetr.evaluation.coco_engine import Matches
from rfdetr.evaluation.records import ImageRecord


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class over all images (rows in any order); crowds are not counted as targets."""

    scores: np.ndarray  # (n,) float64
    matched: np.ndarray  # (n,) bool
    ignored: np.ndarray  # (n,) bool: only a crowd region was found, or too many detections; neither right nor wrong
    num_targets: int


def class_matches(images: list[ImageRecord], matches: Matches) -> dict[int, ClassMatches]:
    """Group by class what became of the detections of `images`."""
    if not images:
        return {}
    labels = np.concatenate([image.detections.labels for image in images])
    scores = np.concatenate([image.detections.scores for image in images]).astype(np.float64)
    target_labels = np.concatenate([image.targets.labels for image in images])
    is_target = ~np.concatenate([image.targets.crowd for image in images])
    rows_of = _rows_by_label(labels)
    nothing = np.zeros(0, dtype=int)
    found = {}
    for label in sorted({*rows_of, *target_labels.tolist()}):
        rows = rows_of.get(label, nothing)
        num_targets = int((is_target & (target_labels == label)).sum())
        found[label] = ClassMatches(scores[rows], matches.targets[rows] >= 0, ~matches.counts[rows], num_targets)
    return found


def _rows_by_label(labels: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(labels[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:])))
