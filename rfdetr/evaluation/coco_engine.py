"""Run the COCO engine, faster-coco-eval, over image records: float64 throughout, nothing printed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as coco_mask
from torch import Tensor

from rfdetr.evaluation.records import RLE, ImageRecord, Instances
from rfdetr.run_length import run_lengths

logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it tells of each of its steps

AREAS = ("all", "small", "medium", "large")


def encode_masks(masks: Tensor) -> list[RLE]:
    """Turn bool masks (n, h, w) or (n, 1, h, w) into compressed run lengths."""
    lengths = run_lengths(masks)
    return coco_mask.frPyObjects(lengths, *masks.shape[-2:]) if lengths else []


def overlaps(detections: Instances, targets: Instances, crowd: np.ndarray, *, masks: bool) -> np.ndarray:
    """IoU (D, T) of boxes or masks; for a crowd target the share of the detection that lies inside it."""
    if not len(detections) or not len(targets):
        return np.zeros((len(detections), len(targets)))
    pair = (detections.masks, targets.masks) if masks else (detections.xywh, targets.xywh)
    return np.asarray(coco_mask.iou(*pair, crowd.astype(int).tolist()))


@dataclass(frozen=True)
class CocoTables:
    """An evaluation's raw numbers, -1 where there is nothing to evaluate.

    T = 10 IoU thresholds 0.50 … 0.95, R = 101 recall levels, K classes (`classes`), A = 4 areas, M limits of detections.
    """

    classes: list[int]
    max_dets: list[int]
    precision: np.ndarray  # (T, R, K, A, M)
    recall: np.ndarray  # (T, K, A, M)
    ious: dict[tuple[int, int], np.ndarray]  # (image index, class) -> (detections by falling score, targets)

    def average_precision(self, limit: int, *, iou: int | None = None, area: str = "all", label: int | None = None) -> float:
        """Mean over thresholds, recall levels and classes; `iou` picks one threshold by its index, `label` one class."""
        return self._mean(self.precision if iou is None else self.precision[iou : iou + 1], limit, area, label)

    def average_recall(self, limit: int, *, area: str = "all", label: int | None = None) -> float:
        """Mean over thresholds and classes of the recall with at most `limit` detections an image and class."""
        return self._mean(self.recall, limit, area, label)

    def _mean(self, table: np.ndarray, limit: int, area: str, label: int | None) -> float:
        values = table[..., AREAS.index(area), self.max_dets.index(limit)]
        if label is not None:
            values = values[..., self.classes.index(label)]
        values = values[values > -1]
        return float(values.mean()) if values.size else -1.0


def run_engine(images: list[ImageRecord], iou_type: str, max_dets: int) -> CocoTables:
    """Evaluate `images` by the overlap of boxes ("bbox") or masks ("segm").

    Classes without any target do not enter a COCO mean, so their detections are not handed over at all.
    """
    limits = sorted([1, 10, max_dets])
    classes = sorted({int(label) for image in images for label in np.unique(image.targets.labels)})
    if not classes:
        return CocoTables([], limits, np.full((10, 101, 0, 4, 3), -1.0), np.full((10, 0, 4, 3), -1.0), {})
    truth = _dataset(images, classes, _annotations(images, iou_type))
    found = _dataset(images, classes, _predictions(images, iou_type, classes))
    evaluator = COCOeval_faster(truth, found, iou_type)
    evaluator.params.maxDets = limits
    evaluator.evaluate()
    evaluator.accumulate()
    return CocoTables(classes, limits, evaluator.eval["precision"], evaluator.eval["recall"], evaluator.ious)


def _dataset(images: list[ImageRecord], classes: list[int], annotations: Iterator[dict]) -> Any:
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": index, **_mask_size(image)} for index, image in enumerate(images)],
        "categories": [{"id": label, "name": str(label)} for label in classes],
        "annotations": list(annotations),
    }
    dataset.createIndex()
    return dataset


def _mask_size(image: ImageRecord) -> dict[str, int]:
    masks = image.targets.masks or image.detections.masks
    return dict(zip(("height", "width"), masks[0]["size"])) if masks else {"height": 0, "width": 0}


def _annotations(images: list[ImageRecord], iou_type: str) -> Iterator[dict]:
    numbers = itertools.count(1)  # the engines read id 0 as "not matched"
    for index, image in enumerate(images):
        targets = image.targets
        rows = zip(numbers, targets.labels.tolist(), targets.areas.tolist(), targets.crowd.tolist(), _shapes(targets, iou_type))
        for number, label, area, crowd, shape in rows:
            yield {"id": number, "image_id": index, "category_id": label, "area": area, "iscrowd": int(crowd), **shape}


def _predictions(images: list[ImageRecord], iou_type: str, classes: list[int]) -> Iterator[dict]:
    numbers = itertools.count(1)
    for index, image in enumerate(images):
        found = image.detections
        areas = np.asarray(coco_mask.area(found.masks)) if iou_type == "segm" and len(found) else found.areas_of_boxes
        is_known = np.isin(found.labels, classes).tolist()
        scores = found.scores.astype(np.float64).tolist()
        rows = zip(is_known, found.labels.tolist(), areas.tolist(), scores, _shapes(found, iou_type))
        for known, label, area, score, shape in rows:
            if known:
                yield {"id": next(numbers), "image_id": index, "category_id": label, "area": area, "score": score, **shape}


def _shapes(instances: Instances, iou_type: str) -> list[dict[str, Any]]:
    if iou_type == "segm":
        return [{"segmentation": mask} for mask in instances.masks]
    return [{"bbox": box} for box in instances.xywh.tolist()]
