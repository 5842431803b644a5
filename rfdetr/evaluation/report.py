"""All that COCO's tables say, worked out once: the summary, per-class values, precision-recall curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rfdetr.evaluation.coco_engine import CocoTables, coco_tables
from rfdetr.evaluation.records import ImageRecord

PREFIXES = {"bbox": "", "segm": "segm_"}  # of the metrics' names
COCO_MAX_DETS = 100  # detections of an image and class, in COCO's own tables
IOU_50, IOU_75 = 0, 5  # rows of COCO's threshold table


@dataclass(frozen=True)
class CocoReport:
    """Plain values and arrays, small enough to be sent to every rank. Curves are of masks where there are any."""

    summaries: dict[int, dict[str, float]]  # limit of detections an image and class -> the numbers
    per_class: dict[str, dict[int, float]]  # IoU type -> label -> AP 50:95, of the classes that have targets
    pr_curves: dict[int, tuple[np.ndarray, np.ndarray]]  # label -> recall (101,), precision (101,) at IoU 0.5


def make_report(images: list[ImageRecord], iou_types: tuple[str, ...], limits: tuple[int, ...]) -> CocoReport:
    """Run the COCO engine for each of `iou_types`; the last one gives the curves.

    Args:
        limits: of detections an image and class; all but the summaries is at the first.
    """
    summaries, per_class, limit = {limit: {} for limit in limits}, {}, limits[0]
    for iou_type in iou_types:
        tables = coco_tables(images, iou_type, [1, 10, *limits])
        for max_dets, summary in summaries.items():
            summary |= {PREFIXES[iou_type] + name: value for name, value in _summarize(tables, max_dets).items()}
        values = {label: tables.average_precision(limit, label=label) for label in tables.classes}
        per_class[iou_type] = {label: value for label, value in values.items() if value > -1}
    return CocoReport(summaries, per_class, _pr_curves(tables, limit))


def _summarize(tables: CocoTables, limit: int) -> dict[str, float]:
    areas = ("small", "medium", "large")
    return {
        "mAP_50_95": tables.average_precision(limit),
        "mAP_50": tables.average_precision(limit, iou=IOU_50),
        "mAP_75": tables.average_precision(limit, iou=IOU_75),
        **{f"mAP_{area}": tables.average_precision(limit, area=area) for area in areas},
        "mAR_1": tables.average_recall(1),
        "mAR_10": tables.average_recall(10),
        "mAR": tables.average_recall(limit),
        **{f"mAR_{area}": tables.average_recall(limit, area=area) for area in areas},
    }


def _pr_curves(tables: CocoTables, limit: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    precision = tables.precision[IOU_50, :, :, 0, tables.max_dets.index(limit)]  # (101, K), of all areas
    recall = np.linspace(0.0, 1.0, len(precision))
    columns = {label: precision[:, column].copy() for column, label in enumerate(tables.classes)}
    return {label: (recall, column) for label, column in columns.items() if column[0] > -1}
