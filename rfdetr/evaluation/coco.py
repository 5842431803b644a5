"""COCO's average precision and recall of boxes and masks, as a metric that any loop can feed.

It has the `update`, `compute` and `reset` of torchmetrics without being one of them: importing that package takes longer than
evaluating a thousand images, and its gathering over ranks hangs where one of them has no images.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch import Tensor
from torch import distributed as dist

from rfdetr.evaluation.coco_engine import Outcome, confusion_matrix, find_matches, find_outcomes
from rfdetr.evaluation.matching import ClassMatches, class_matches
from rfdetr.evaluation.records import ImageRecord, encode_masks, make_record
from rfdetr.evaluation.report import COCO_MAX_DETS, PREFIXES, CocoReport, make_report

logger = logging.getLogger(__name__)


class CocoMetrics:
    """Mean average precision and recall by COCO's rules, equal to pycocotools to 1e-12.

    With several ranks each passes its own images, none or any number; `compute` evaluates them on rank 0 and gives every rank
    the same result. Detections of equal score are ranked by ``image_id`` where all targets have one, else in the order in
    which one process would have met the images.

    Args:
        iou_types: ("bbox",) or ("bbox", "segm"); masks are kept as run lengths.
        max_dets: detections of an image and class that count.
        with_coco_table: also work out the numbers at COCO's own limit of 100, for `coco_table`.
    """

    def __init__(
        self, *, iou_types: tuple[str, ...] = ("bbox",), max_dets: int = 500, with_coco_table: bool = False
    ) -> None:
        if not iou_types or not set(iou_types) <= set(PREFIXES):
            raise ValueError(f"iou_types: {tuple(iou_types)!r} is not possible; use ('bbox',) or ('bbox', 'segm')")
        if max_dets < 1:
            raise ValueError(f"max_dets: {max_dets} is not possible; it must be 1 or more")
        self.iou_types = tuple(sorted(iou_types))
        self.max_dets = max_dets
        self._limits = (max_dets, COCO_MAX_DETS) if with_coco_table else (max_dets,)
        self.reset()

    def update(self, results: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        """Add images, each once.

        Args:
            results: a dict an image: scores (k,), labels (k,), boxes (k, 4) xyxy pixels[, masks (k, 1, h, w) or (k, h, w)].
            targets: a dict an image: boxes (M, 4) xyxy pixels, labels (M,)[, iscrowd (M,), area (M,) in pixels (default: the
                box's), image_id, masks (M, h, w) bool].
        """
        if len(results) != len(targets):
            raise ValueError(f"{len(results)} results for {len(targets)} targets; give one of each for every image")
        encode = encode_masks if "segm" in self.iou_types else None
        self._forget_report()
        self.images.extend(make_record(result, target, encode) for result, target in zip(results, targets))

    def reset(self) -> None:
        """Forget all images."""
        self.images: list[ImageRecord] = []
        self._forget_report()

    def compute(self) -> dict[str, float]:
        """Return the metrics over the images of all ranks, -1 where there is nothing to evaluate. Every rank must call it.

        Keys: ``mAP_50_95, mAP_50, mAP_75, mAP_small, mAP_medium, mAP_large, mAR_1, mAR_10, mAR`` (at `max_dets`),
        ``mAR_small, mAR_medium, mAR_large``, and the same with ``segm_`` for masks.
        """
        if _any_rank(self._report is None):
            self._report_all_ranks()
        return dict(self._report.summaries[self.max_dets])

    def coco_table(self) -> dict[str, float]:
        """Return what `compute` does, at COCO's own limit of 100 detections an image and class, from the same evaluation."""
        return dict(self._current_report().summaries[COCO_MAX_DETS])

    def matches(self) -> dict[int, ClassMatches]:
        """Return label -> matches at IoU 0.5 (of masks where they are evaluated) over the images of all ranks.

        Worked out at the first call after an update, which every rank must make.
        """
        if self._matches is None:
            self._current_report()
            images, iou_type = self._gathered, self.iou_types[-1]
            found = None if images is None else class_matches(images, find_matches(images, iou_type, self.max_dets))
            self._matches = _from_main(found)
        return self._matches

    def per_class(self, iou_type: str = "bbox") -> dict[int, float]:
        """Return label -> AP 50:95 of the classes that have targets.

        This and the methods below wait for other ranks only if `compute` was not called since the last update.
        """
        return self._current_report().per_class[iou_type]

    def pr_curves(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Return label -> recall (101,), precision (101,) at IoU 0.5 (of masks where they are evaluated)."""
        return self._current_report().pr_curves

    def confusion(self, num_classes: int, score_threshold: float) -> np.ndarray:
        """Return `rfdetr.evaluation.coco_engine.confusion_matrix` over all images.

        Raises:
            RuntimeError: called on another rank than 0, which has not got the images.
        """
        return confusion_matrix(self._all_images(), num_classes, score_threshold, masks="segm" in self.iou_types)

    def outcomes(self, score_threshold: float) -> list[Outcome]:
        """Return what became of each image, see `rfdetr.evaluation.coco_engine.find_outcomes`; on rank 0 only."""
        return find_outcomes(self._all_images(), score_threshold, masks="segm" in self.iou_types)

    def _all_images(self) -> list[ImageRecord]:
        self._current_report()
        if self._gathered is None:
            raise RuntimeError("the images of all ranks are on rank 0; ask for what is made of them there")
        return self._gathered

    def all_images(self) -> list[ImageRecord]:
        """Return the images of all ranks in one order, ranked as in `compute`; empty on other ranks than 0."""
        self._current_report()
        return list(self._gathered or [])

    def _forget_report(self) -> None:
        self._report: CocoReport | None = None
        self._matches: dict[int, ClassMatches] | None = None
        self._gathered: list[ImageRecord] | None = None  # of all ranks, on rank 0

    def _current_report(self) -> CocoReport:
        if self._report is None:
            self._report_all_ranks()
        return self._report

    def _report_all_ranks(self) -> None:
        """Gather on rank 0, evaluate there (a big split takes gigabytes), and hand the result to all."""
        shards = _gather_on_main(self.images)
        self._gathered = None if shards is None else _in_order(shards)
        report = None
        if self._gathered is not None:
            report = make_report(self._gathered, self.iou_types, self._limits)
        self._report = _from_main(report)


def _in_order(shards: list[list[ImageRecord]]) -> list[ImageRecord]:
    """Put the images of all ranks into one order: it ranks detections of equal score, as in pycocotools."""
    # a sampler gives rank r of n the images r, r + n, r + 2n, …
    turns = sorted((turn, rank) for rank, shard in enumerate(shards) for turn in range(len(shard)))
    images = [shards[rank][turn] for turn, rank in turns]
    for place, image in enumerate(images):
        image.place = place
    ids = [image.image_id for image in images]
    if None in ids:
        return images
    if len(set(ids)) < len(ids):
        logger.warning("%d images came more than once and count more than once", len(ids) - len(set(ids)))
    return sorted(images, key=lambda image: image.image_id)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _any_rank(flag: bool) -> bool:
    """Return whether `flag` is set on any rank, on every rank."""
    if not _is_distributed():
        return flag
    flags = [None] * dist.get_world_size()
    dist.all_gather_object(flags, flag)
    return any(flags)


def _gather_on_main(value: Any) -> list[Any] | None:
    """Return every rank's `value` on rank 0, None elsewhere."""
    if not _is_distributed():
        return [value]
    gathered = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered, dst=0)
    return gathered


def _from_main(value: Any) -> Any:
    """Return rank 0's `value` on every rank."""
    if not _is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
