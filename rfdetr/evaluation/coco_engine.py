"""Run the COCO engine, hotcoco, over image records: columns in, tables and matches out; float64 throughout, nothing printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from hotcoco import COCO, COCOeval
from hotcoco.mask import area as mask_area

from rfdetr.evaluation.records import RLE, ImageRecord, Instances

AREAS = ("all", "small", "medium", "large")
MATCH_IOU = 0.5
EVERY_DETECTION = 1_000_000  # a limit that no image reaches


@dataclass(frozen=True)
class CocoTables:
    """An evaluation's raw numbers, -1 where there is nothing to evaluate.

    T = 10 IoU thresholds 0.50 … 0.95, R = 101 recall levels, K classes (`classes`), A = 4 areas, M limits of detections.
    """

    classes: list[int]  # of targets or detections
    max_dets: list[int]
    precision: np.ndarray  # (T, R, K, A, M)
    recall: np.ndarray  # (T, K, A, M)

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


class Evaluation:
    """`images` compared by the overlap of boxes ("bbox") or masks ("segm"), once, for all limits of detections in `max_dets`."""

    def __init__(self, images: list[ImageRecord], iou_type: str, max_dets: list[int]) -> None:
        self._images, self._max_dets = images, sorted(set(max_dets))
        self._evaluator = _evaluator(images, iou_type, self._max_dets)
        self._evaluator.evaluate()

    def tables(self) -> CocoTables:
        self._evaluator.accumulate()
        tables = self._evaluator.eval
        return CocoTables(sorted(self._evaluator.params.cat_ids), self._max_dets, tables["precision"], tables["recall"])

    def matches(self) -> tuple[np.ndarray, np.ndarray]:
        """Return of all detections, image by image, whether each found a target at IoU 0.5, and whether it counts at all.

        Those that only found a crowd region, or are beyond the largest limit of their image and class, do not count.
        """
        statuses = self._evaluator.image_diagnostics(iou_thr=MATCH_IOU)
        matched, counts = np.zeros((2, sum(len(image.detections) for image in self._images)), dtype=bool)
        # the engine numbers detections from 1
        counts[_numbers(statuses["dt_status"]) - 1] = True
        matched[_numbers(statuses["dt_match"]) - 1] = True
        return matched, counts


def confusion_matrix(
    images: list[ImageRecord], num_classes: int, score_threshold: float, *, masks: bool
) -> np.ndarray:
    """Count (true class, predicted class) pairs at IoU 0.5, matching regardless of class.

    Returns:
        (num_classes + 1, num_classes + 1) int64; the last row is the background (false alarms), the last column what was
        missed. Detections in crowd regions and labels outside the classes are left out.
    """
    images = [
        ImageRecord(
            image.detections[(image.detections.scores >= score_threshold) & (image.detections.labels < num_classes)],
            image.targets[image.targets.labels < num_classes],
        )
        for image in images
    ]
    evaluator = _evaluator(images, "segm" if masks else "bbox", [EVERY_DETECTION])
    evaluator.params.use_cats = False  # the engine's own confusion matrix takes detections in a crowd for false alarms
    evaluator.evaluate()
    statuses = evaluator.image_diagnostics(iou_thr=MATCH_IOU)
    true_labels = _joined([image.targets for image in images], "labels")
    found_labels = _joined([image.detections for image in images], "labels")
    rows = np.full(len(found_labels), num_classes)
    matches = statuses["dt_match"]  # of detection to target, both numbered from 1
    rows[_numbers(matches) - 1] = true_labels[_numbers(matches.values()) - 1]
    counted = _numbers(statuses["dt_status"]) - 1
    missed = _numbers(number for number, status in statuses["gt_status"].items() if status == "fn") - 1
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    np.add.at(counts, (rows[counted], found_labels[counted]), 1)
    np.add.at(counts, (true_labels[missed], num_classes), 1)
    return counts


def _evaluator(images: list[ImageRecord], iou_type: str, max_dets: list[int]) -> COCOeval:
    found, targets = [image.detections for image in images], [image.targets for image in images]
    labels = np.unique(np.concatenate([np.zeros(0, np.int64), *(some.labels for some in (*found, *targets))]))
    truth = COCO.from_arrays(
        images=[{"id": index, **_mask_size(image)} for index, image in enumerate(images)],
        categories=[{"id": label, "name": str(label)} for label in labels.tolist()],
        image_ids=_image_ids(targets), category_ids=_joined(targets, "labels"), boxes=_joined(targets, "xywh"),
        area=_joined(targets, "areas"), iscrowd=_joined(targets, "crowd"), segmentation=_masks(targets, iou_type),
    )
    columns = [_image_ids(found)[:, None], _engine_boxes(found, iou_type), _joined(found, "scores")[:, None],
               _joined(found, "labels")[:, None]]
    detections = truth.load_res(np.concatenate(columns, axis=1), segmentation=_masks(found, iou_type))
    evaluator = COCOeval(truth, detections, iou_type)
    evaluator.params.max_dets = max_dets
    return evaluator


def _numbers(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)


def _image_ids(instances: list[Instances]) -> np.ndarray:
    return np.repeat(np.arange(len(instances)), [len(some) for some in instances])


def _joined(instances: list[Instances], name: str) -> np.ndarray:
    empty = np.zeros((0, 4) if name == "xywh" else 0, dtype=np.int64 if name == "labels" else np.float64)
    return np.concatenate([empty, *(getattr(some, name) for some in instances)])


def _masks(instances: list[Instances], iou_type: str) -> list[RLE] | None:
    return [mask for some in instances for mask in some.masks] if iou_type == "segm" else None


def _engine_boxes(found: list[Instances], iou_type: str) -> np.ndarray:
    """Boxes (n, 4) xywh of detections; for masks any of their area, which is all that the engine takes from them then."""
    if iou_type == "bbox":
        return _joined(found, "xywh")
    areas = np.asarray(mask_area(_masks(found, iou_type)), dtype=np.float64).reshape(-1, 1)
    return np.concatenate([np.zeros((len(areas), 2)), areas, np.ones((len(areas), 1))], axis=1)


def _mask_size(image: ImageRecord) -> dict[str, int]:
    masks = image.targets.masks or image.detections.masks
    return dict(zip(("height", "width"), masks[0]["size"])) if masks else {"height": 0, "width": 0}
