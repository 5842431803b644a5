"""Run the COCO engine, vernier, over image records: arrays in, tables and matches out; float64 throughout.

Of the engines tried (also hotcoco and faster-coco-eval, all equal to pycocotools) it is the one that gives the matches as
columns, and that a forked process may use after its parent has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow
import torch
from vernier import instance as engine

from rfdetr.evaluation.records import ImageRecord, Instances

AREAS = ("all", "small", "medium", "large")
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


@dataclass(frozen=True)
class Matches:
    """What became of D detections, image by image, at IoU 0.5."""

    targets: np.ndarray  # (D,) index of the target that each has found, over all images, or -1
    counts: np.ndarray  # (D,) bool: not one that only found a crowd region, or is beyond the limit of its image and class


def coco_tables(images: list[ImageRecord], iou_type: str, max_dets: list[int]) -> CocoTables:
    """Evaluate `images` by the overlap of boxes ("bbox") or masks ("segm"), once for all limits of detections."""
    limits = sorted(set(max_dets))
    tables = _compared(images, iou_type, limits[-1]).accumulate(limits)
    return CocoTables(_classes(images), limits, tables.precision, tables.recall)


def find_matches(images: list[ImageRecord], iou_type: str, max_dets: int, *, by_class: bool = True) -> Matches:
    """Compare detections and targets at IoU 0.5; with `by_class` only those of one class.

    One threshold and no areas: with what is kept for the matches, asking `coco_tables` for them would take longer.
    """
    every_area = engine.Breakdown.from_ranges("area", [("all", 0.0, 1e10)])
    grid = _compared(images, iou_type, max_dets, use_cats=by_class, iou_thresholds=[0.5], area_ranges=every_area,
                     retain_iou=True)
    rows = pyarrow.record_batch(engine.per_detection_to_arrow_pycapsule(grid))
    numbers = rows["detection_id"].to_numpy() - 1  # the engine counts from 1, targets as well
    num_detections = sum(len(image.detections) for image in images)
    targets, counts = np.full(num_detections, -1), np.zeros(num_detections, dtype=bool)
    targets[numbers] = rows["matched_gt_id_at_50"].fill_null(0).to_numpy() - 1
    status = rows["match_status_at_50"]
    counts[numbers] = np.isin(status.dictionary.to_numpy(zero_copy_only=False), ("tp", "fp"))[status.indices.to_numpy()]
    return Matches(np.where(counts, targets, -1), counts)


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
    matches = find_matches(images, "segm" if masks else "bbox", EVERY_DETECTION, by_class=False)
    found, targets = ([getattr(image, side) for image in images] for side in ("detections", "targets"))
    found_labels, true_labels = _joined(found, "labels"), np.append(_joined(targets, "labels"), num_classes)  # -1: background
    is_missed = np.append(~_joined(targets, "crowd").astype(bool), False)
    is_missed[matches.targets] = False
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    np.add.at(counts, (true_labels[matches.targets][matches.counts], found_labels[matches.counts]), 1)
    np.add.at(counts, (true_labels[is_missed], num_classes), 1)
    return counts


@dataclass(frozen=True)
class Outcome:
    """What became of an image's detections, those from a score on, and of its targets, at IoU 0.5 and class by class."""

    image: ImageRecord
    right: np.ndarray  # (n,) bool, of the detections
    wrong: np.ndarray  # (n,) bool; those in crowd regions are neither
    missed: np.ndarray  # (m,) bool, of the targets; crowds are not

    @property
    def num_errors(self) -> int:
        return int(self.wrong.sum() + self.missed.sum())


def find_outcomes(images: list[ImageRecord], score_threshold: float, *, masks: bool) -> list[Outcome]:
    """Say of each image what was found, what was missed, and what is there only in the model's eyes."""
    images = [replace(image, detections=image.detections[image.detections.scores >= score_threshold]) for image in images]
    matches = find_matches(images, "segm" if masks else "bbox", EVERY_DETECTION)
    is_missed = ~_joined([image.targets for image in images], "crowd").astype(bool)
    is_missed[matches.targets[matches.targets >= 0]] = False
    outcomes, first_found, first_target = [], 0, 0
    for image in images:
        found = slice(first_found, first_found := first_found + len(image.detections))
        targets = slice(first_target, first_target := first_target + len(image.targets))
        right = matches.targets[found] >= 0
        outcomes.append(Outcome(image, right, matches.counts[found] & ~right, is_missed[targets]))
    return outcomes


def _compared(images: list[ImageRecord], iou_type: str, max_dets: int, *, use_cats: bool = True, **options: Any) -> Any:
    compare, area = (engine.evaluate_segm_grid, "mask") if iou_type == "segm" else (engine.evaluate_bbox_grid, "bbox")
    return compare(_truth(images, _classes(images), iou_type),
                   [_found(index, image, iou_type) for index, image in enumerate(images)],
                   parity_mode="strict", max_dets_per_image=max_dets, use_cats=use_cats, dt_area=area,
                   num_threads=torch.get_num_threads(), **options)


def _classes(images: list[ImageRecord]) -> list[int]:
    return np.unique(_joined([side for image in images for side in (image.detections, image.targets)], "labels")).tolist()


def _truth(images: list[ImageRecord], classes: list[int], iou_type: str) -> engine.CocoDataset:
    targets = [image.targets for image in images]
    sizes = np.array([_mask_size(image) for image in images], dtype=np.int64).reshape(-1, 2)
    labels = _joined(targets, "labels")
    annotations = {
        "id": np.arange(1, len(labels) + 1), "image_id": np.repeat(np.arange(len(images)), [len(some) for some in targets]),
        "category_id": labels, "bbox": _joined(targets, "xywh"), "area": _joined(targets, "areas"),
        "iscrowd": _joined(targets, "crowd").astype(bool),
    }
    if iou_type == "segm":
        annotations["segmentation"] = [mask for some in targets for mask in some.masks]
    return engine.CocoDataset.from_arrays(
        images={"id": np.arange(len(images)), "height": sizes[:, 0].copy(), "width": sizes[:, 1].copy()},
        categories=[{"id": label, "name": str(label)} for label in classes], annotations=annotations)


def _found(index: int, image: ImageRecord, iou_type: str) -> engine.Detections:
    found = image.detections
    arrays = {"image_id": index, "boxes": found.xywh, "scores": found.scores.astype(np.float64), "labels": found.labels}
    return {**arrays, "rles": found.masks} if iou_type == "segm" else arrays


def _joined(instances: list[Instances], name: str) -> np.ndarray:
    empty = np.zeros((0, 4) if name == "xywh" else 0, dtype=np.int64 if name == "labels" else np.float64)
    return np.concatenate([empty, *(getattr(some, name) for some in instances)])


def _mask_size(image: ImageRecord) -> list[int]:
    masks = image.targets.masks or image.detections.masks
    return masks[0]["size"] if masks else [0, 0]
