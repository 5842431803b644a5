"""What a detector's errors are, after TIDE: Bolya, Foley, Hays, Hoffman, "TIDE: A General Toolbox for Identifying Object
Detection Errors", ECCV 2020, arXiv 2008.08115.

A detection that found no object (of its class, at IoU 0.5, by COCO's rules) is one of five kinds of error, by its overlap with
all objects of the image; an object that nothing found is missed, unless a wrong label or a wrong box accounts for it. None of
this depends on the score threshold, which only chooses the detections that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import box_iou

from rfdetr.evaluation.coco_engine import EVERY_DETECTION, find_matches
from rfdetr.evaluation.f1 import THRESHOLDS
from rfdetr.evaluation.records import ImageRecord

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
RIGHT, IGNORED = -1, -2  # neither: it found a crowd region
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1
SIZES = ("small", "medium", "large")
SIZE_LIMITS = (32**2, 96**2)  # pixels of the area, COCO's
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Errors:
    """D detections and T objects of all images, in their order; crowd regions are no objects that could be missed."""

    kinds: np.ndarray  # (D,) index into KINDS, RIGHT or IGNORED
    objects: np.ndarray  # (D,) the object that each has found, or would have found with another label or box; -1: none
    scores: np.ndarray  # (D,)
    labels: np.ndarray  # (D,)
    found_at: np.ndarray  # (T,) score of the detection that found it, -inf: none
    covered_at: np.ndarray  # (T,) the best score of what found it, or would have with another label or box
    object_labels: np.ndarray  # (T,)
    object_sizes: np.ndarray  # (T,) index into SIZES
    counts: np.ndarray  # (T,) bool: no crowd


def find_errors(images: Sequence[ImageRecord]) -> Errors:
    """Tell for each detection of the images what became of it."""
    images = list(images)
    matches = find_matches(images, "bbox", EVERY_DETECTION)
    kinds = np.where(matches.counts, RIGHT, IGNORED)
    objects, is_wrong = matches.targets.copy(), matches.counts & (matches.targets < 0)
    detection, target = 0, 0
    for image in images:
        rows = detection + np.flatnonzero(is_wrong[detection : detection + len(image.detections)])
        columns = np.flatnonzero(~image.targets.crowd)
        ious = _ious(image.detections.boxes[rows - detection], image.targets.boxes[columns])
        same = image.detections.labels[rows - detection, None] == image.targets.labels[None, columns]
        kinds[rows], place = classify(ious, same)
        objects[rows] = np.where(place >= 0, target + columns[place] if len(columns) else -1, -1)
        detection, target = detection + len(image.detections), target + len(image.targets)
    scores, labels = (_joined([getattr(image.detections, name) for image in images]) for name in ("scores", "labels"))
    object_labels, areas, crowd = (_joined([getattr(image.targets, name) for image in images])
                                   for name in ("labels", "areas", "crowd"))
    found_at = _best_scores(len(object_labels), objects, scores, kinds == RIGHT)
    covered_at = _best_scores(len(object_labels), objects, scores, np.isin(kinds, (RIGHT, CLASSIFICATION, LOCALISATION)))
    return Errors(kinds, objects, scores, labels.astype(int), found_at, covered_at, object_labels.astype(int),
                  np.digitize(areas, SIZE_LIMITS), ~crowd.astype(bool))


def classify(ious: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell the kind of error of each of n detections that found nothing.

    Args:
        ious: (n, m) overlaps with the m objects of the image.
        same: (n, m) bool: the object has the detection's class.

    Returns:
        index into KINDS (n,), and the object that it is about (n,), -1 for kinds that are about none.
    """
    if not ious.shape[1]:
        return np.full(len(ious), BACKGROUND), np.full(len(ious), -1)
    tables = [np.where(mask, ious, 0.0) for mask in (same, ~same)]
    (own, own_place), (other, other_place) = ((table.max(axis=1), table.argmax(axis=1)) for table in tables)
    is_close = (own >= BACKGROUND_IOU) & (own < FOREGROUND_IOU)
    cases = [is_close, other >= FOREGROUND_IOU, own >= FOREGROUND_IOU, np.maximum(own, other) < BACKGROUND_IOU]
    kinds = np.select(cases, [LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND], BOTH)
    return kinds, np.select(cases[:3], [own_place, other_place, own_place], -1)


def gains(errors: Errors) -> dict[str, float]:
    """Return by kind how much AP50 would rise were there no such errors (TIDE's dAP), and "AP50" as it is; -1: no objects.

    A wrong label or box is put right where nothing else found the object, for the best such detection of each, else it is taken
    away as errors of the other kinds are; missed objects are taken out of the ground truth. The sum says nothing: errors hide
    each other.
    """
    num_objects = np.bincount(errors.object_labels[errors.counts], minlength=errors.labels.max(initial=0) + 1)
    is_right, counts = errors.kinds == RIGHT, errors.kinds != IGNORED
    base = _mean_ap(errors.scores, errors.labels, is_right, counts, num_objects)
    found = {}
    for kind, name in enumerate(KINDS[:MISSED]):
        mended, labels = np.zeros_like(is_right), errors.labels
        if kind in (CLASSIFICATION, LOCALISATION):
            rows = np.flatnonzero(errors.kinds == kind)
            rows = rows[np.isneginf(errors.found_at[errors.objects[rows]])]
            rows = rows[np.argsort(-errors.scores[rows], kind="stable")]
            mended[rows[np.unique(errors.objects[rows], return_index=True)[1]]] = True
            labels = np.where(mended, errors.object_labels[errors.objects], labels) if len(errors.object_labels) else labels
        kept = counts & ((errors.kinds != kind) | mended)
        found[name] = _mean_ap(errors.scores, labels, is_right | mended, kept, num_objects)
    missed = np.bincount(errors.object_labels[errors.counts & np.isneginf(errors.covered_at)], minlength=len(num_objects))
    found["missed"] = abs(_mean_ap(errors.scores, errors.labels, is_right, counts, num_objects - missed))  # -1: nothing is left
    return {"AP50": base} | {name: max(value - base, 0.0) if base >= 0 else -1.0 for name, value in found.items()}


def counts_by_threshold(errors: Errors, num_classes: int) -> dict[str, np.ndarray]:
    """Count at each of the score thresholds 0.00, 0.01 … 1.00 what is found from there on.

    Returns:
        ``objects`` (K,), ``right`` and ``wrong`` (K, 101) by class; ``errors`` (6, 101) by kind; ``size_objects`` (3,) and
        ``size_right`` (3, 101) by the size of the objects.
    """
    sizes, labels = errors.object_sizes[errors.counts], errors.object_labels[errors.counts]
    found_at = errors.found_at[errors.counts]
    is_wrong = errors.kinds >= 0
    by_kind = _counts_from(errors.scores[is_wrong], errors.kinds[is_wrong], MISSED)
    missed = errors.counts.sum() - _counts_from(errors.covered_at[errors.counts], np.zeros(len(labels), int), 1)
    return {
        "objects": np.bincount(labels, minlength=num_classes)[:num_classes],
        "right": _counts_from(errors.scores[errors.kinds == RIGHT], errors.labels[errors.kinds == RIGHT], num_classes),
        "wrong": _counts_from(errors.scores[is_wrong], errors.labels[is_wrong], num_classes),
        "errors": np.concatenate([by_kind, missed]),
        "size_objects": np.bincount(sizes, minlength=len(SIZES)), "size_right": _counts_from(found_at, sizes, len(SIZES)),
    }


def worst_images(errors: Errors, images: Sequence[ImageRecord], threshold: float, number: int) -> list[int]:
    """Return the places of the images with the largest errors: scores of what is wrong, and 1 for each object not found."""
    of_detection = np.repeat(np.arange(len(images)), [len(image.detections) for image in images])
    of_object = np.repeat(np.arange(len(images)), [len(image.targets) for image in images])
    is_wrong = (errors.kinds >= 0) & (errors.scores >= threshold)
    sums = np.bincount(of_detection[is_wrong], errors.scores[is_wrong], len(images))
    sums += np.bincount(of_object[errors.counts & (errors.found_at < threshold)], minlength=len(images))
    return [int(place) for place in np.argsort(-sums, kind="stable")[:number] if sums[place] > 0]


def _ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    a, b = (torch.from_numpy(np.asarray(some, np.float64).reshape(-1, 4)) for some in (boxes, others))
    return box_iou(a, b).nan_to_num_().numpy()  # 0 for boxes without area


def _joined(columns: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *columns])


def _best_scores(num_objects: int, objects: np.ndarray, scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    best = np.full(num_objects, -np.inf)
    np.maximum.at(best, objects[chosen], scores[chosen])
    return best


def _counts_from(scores: np.ndarray, groups: np.ndarray, num_groups: int) -> np.ndarray:
    """Count in each group the scores at or above each threshold, (num_groups, 101)."""
    passed = np.searchsorted(THRESHOLDS, scores.astype(np.float64), side="right")  # thresholds that a score reaches
    table = np.zeros((num_groups, len(THRESHOLDS) + 1), dtype=int)
    inside = groups < num_groups
    np.add.at(table, (groups[inside], passed[inside]), 1)
    return table[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]


def _mean_ap(
    scores: np.ndarray, labels: np.ndarray, right: np.ndarray, kept: np.ndarray, num_objects: np.ndarray
) -> float:
    """COCO's 101-point AP at IoU 0.5, the mean over the classes that have objects; -1: none has."""
    values = []
    for label in np.flatnonzero(num_objects):
        rows = np.flatnonzero(kept & (labels == label))
        hits = right[rows[np.argsort(-scores[rows], kind="stable")]].cumsum()
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        places = np.searchsorted(hits / num_objects[label], RECALLS, side="left")
        values.append(np.append(precision, 0.0)[np.minimum(places, len(hits))].mean())
    return float(np.mean(values)) if values else -1.0
