"""Which detection found which target at IoU 0.5: per class for the F1 sweep, across classes for the confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rfdetr.evaluation.coco_engine import CocoTables, overlaps
from rfdetr.evaluation.records import Detections, ImageRecord

MATCH_IOU = 0.5


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class over all images (rows in any order); crowds are not counted as targets."""

    scores: np.ndarray  # (n,) float64
    matched: np.ndarray  # (n,) bool
    ignored: np.ndarray  # (n,) bool: only a crowd region was found, neither right nor wrong
    num_targets: int


def match_greedily(ious: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let each detection, best score first, take the free target that it overlaps most.

    Args:
        ious: (D, T), detections by falling score.
        crowd: (T,) bool; a detection that takes nothing else is ignored in a crowd region, any number of times.

    Returns:
        (D,) int index of the target taken, or -1; (D,) bool ignored.
    """
    taken = np.full(len(ious), -1)
    ignored = np.zeros(len(ious), dtype=bool)
    if not len(crowd):
        return taken, ignored
    is_free = ~crowd
    for row in np.flatnonzero(ious.max(axis=1) >= MATCH_IOU):
        overlap = np.where(is_free, ious[row], 0.0)
        best = int(overlap.argmax())
        if overlap[best] >= MATCH_IOU:
            taken[row], is_free[best] = best, False
        else:
            ignored[row] = bool((ious[row][crowd] >= MATCH_IOU).any())
    return taken, ignored


def class_matches(images: list[ImageRecord], tables: CocoTables, max_dets: int) -> dict[int, ClassMatches]:
    """Match detections and targets of equal label, with the overlaps that the COCO evaluation has worked out."""
    parts = [_match_image(index, image, tables, max_dets) for index, image in enumerate(images)]
    if not parts:
        return {}
    labels, scores, matched, ignored = (np.concatenate(columns) for columns in zip(*parts))
    target_labels = np.concatenate([image.targets.labels[~image.targets.crowd] for image in images])
    crowd_labels = np.concatenate([image.targets.labels[image.targets.crowd] for image in images])
    rows_of = _rows_by_label(labels)
    nothing = np.zeros(0, dtype=int)
    found = {}
    for label in sorted({*rows_of, *target_labels.tolist(), *crowd_labels.tolist()}):
        rows = rows_of.get(label, nothing)
        found[label] = ClassMatches(scores[rows], matched[rows], ignored[rows], int((target_labels == label).sum()))
    return found


def _match_image(index: int, image: ImageRecord, tables: CocoTables, max_dets: int) -> tuple[np.ndarray, ...]:
    """Return labels, scores, matched and ignored of the detections of one image that count."""
    found, targets = image.detections, image.targets
    scores = found.scores.astype(np.float64)
    order = np.lexsort((-scores, found.labels))  # by class, then by falling score; stable
    labels = found.labels[order]
    matched, ignored = np.zeros(len(found), dtype=bool), np.zeros(len(found), dtype=bool)
    starts = np.searchsorted(labels, labels, side="left")
    for label in np.unique(targets.labels):
        start, stop = np.searchsorted(labels, label, side="left"), np.searchsorted(labels, label, side="right")
        stop = min(stop, start + max_dets)
        if start < stop:
            ious = np.asarray(tables.ious[index, int(label)])[: stop - start]
            taken, ignored[start:stop] = match_greedily(ious, targets.crowd[targets.labels == label])
            matched[start:stop] = taken >= 0
    counts = np.arange(len(found)) - starts < max_dets
    return labels[counts], scores[order][counts], matched[counts], ignored[counts]


def _rows_by_label(labels: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(labels[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:])))


def confusion_matrix(
    images: list[ImageRecord], num_classes: int, score_threshold: float, *, masks: bool
) -> np.ndarray:
    """Count (true class, predicted class) pairs at IoU 0.5, matching regardless of class.

    Returns:
        (num_classes + 1, num_classes + 1) int64; the last row is the background (false alarms), the last column what was
        missed. Detections in crowd regions and labels outside the classes are left out.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for image in images:
        found, targets = _confident(image.detections, score_threshold, num_classes), image.targets
        is_known = targets.labels < num_classes
        ious = overlaps(found, targets, targets.crowd, masks=masks)[:, is_known]
        labels, crowd = targets.labels[is_known], targets.crowd[is_known]
        taken, ignored = match_greedily(ious, crowd)
        is_hit, is_missed = taken >= 0, ~crowd
        is_missed[taken[is_hit]] = False
        np.add.at(counts, (labels[taken[is_hit]], found.labels[is_hit]), 1)
        np.add.at(counts, (num_classes, found.labels[~is_hit & ~ignored]), 1)
        np.add.at(counts, (labels[is_missed], num_classes), 1)
    return counts


def _confident(found: Detections, score_threshold: float, num_classes: int) -> Detections:
    """Return the detections that count, best first."""
    rows = np.argsort(-found.scores, kind="stable")
    rows = rows[(found.scores[rows] >= score_threshold) & (found.labels[rows] < num_classes)]
    masks = None if found.masks is None else [found.masks[row] for row in rows]
    return Detections(found.boxes[rows], found.labels[rows], masks, scores=found.scores[rows])
