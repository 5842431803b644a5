"""The evaluation of a detector as the training loop and tools/eval.py run it: COCO metrics and F1 under their published names."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rfdetr.box_ops import cxcywh_to_xyxy
from rfdetr.evaluation.coco import CocoMetrics
from rfdetr.evaluation.coco_engine import Outcome
from rfdetr.evaluation.f1 import f1_sweep
from rfdetr.evaluation.report import PREFIXES


def absolute_targets(targets: list[dict[str, Tensor]], device: torch.device | str | None = None) -> list[dict[str, Tensor]]:
    """Turn the loader's targets into those of the metrics: boxes in xyxy pixels of the original image.

    Args:
        targets: boxes (M, 4) cxcywh in fractions of the image, which they may leave, labels (M,), orig_size (2,) h, w, any of
            iscrowd (M,), area (M,), image_id, masks (M, h, w) bool of any size.

    Returns:
        New dicts with the same keys (orig_size and size left out); masks have the original size.
    """
    return [_absolute_target(target, device) for target in targets]


def _absolute_target(target: dict[str, Tensor], device: torch.device | str | None) -> dict[str, Tensor]:
    target = {key: value if device is None else value.to(device) for key, value in target.items()}
    height, width = target["orig_size"].tolist()
    scale = target["boxes"].new_tensor([width, height, width, height])
    kept: dict[str, Tensor] = {key: target[key] for key in ("labels", "iscrowd", "area", "image_id") if key in target}
    if "masks" in target:
        kept["masks"] = _resize_masks(target["masks"], height, width)
    return {"boxes": cxcywh_to_xyxy(target["boxes"]) * scale, **kept}


def _resize_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """bool masks (M, h, w) -> (M, height, width), nearest pixel."""
    if masks.shape[-2:] == (height, width) or not len(masks):
        return masks.reshape(len(masks), height, width)
    return F.interpolate(masks[:, None].to(torch.uint8), size=(height, width), mode="nearest-exact")[:, 0].bool()


class DetectionMetrics:
    """COCO metrics, the F1 sweep and per-class values over a split; what `engine.evaluate` feeds.

    With several ranks `compute` gathers, and is the only method in which ranks wait for each other (`confusion`: rank 0 only).

    Args:
        class_names: name of label 0, 1, …
        iou_types: ("bbox",) or ("bbox", "segm").
        max_dets: detections of an image and class that count.
        per_class: also report ``AP/<class>``.
        with_coco_table: see `CocoMetrics`.
    """

    def __init__(
        self,
        class_names: list[str],
        *,
        iou_types: tuple[str, ...] = ("bbox",),
        max_dets: int = 500,
        per_class: bool = True,
        with_coco_table: bool = False,
    ) -> None:
        self.class_names = list(class_names)
        self.per_class = per_class
        self.coco = CocoMetrics(iou_types=iou_types, max_dets=max_dets, with_coco_table=with_coco_table)

    def update(self, results: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        """Add images: results of `PostProcess`, targets as the loader gives them."""
        self.coco.update(results, absolute_targets(targets))

    def compute(self) -> dict[str, float]:
        """Return `CocoMetrics`' values, ``F1, precision, recall`` at the best threshold (``F1_threshold``), ``AP/<class>``.

        Masks add ``segm_…``; F1 and its threshold are then those of masks, ``AP/<class>`` of boxes.
        """
        metrics = self.coco.compute()
        sweep = f1_sweep(self.coco.matches())
        metrics |= {name: sweep[name] for name in ("F1", "precision", "recall")}
        metrics["F1_threshold"] = sweep["threshold"]
        if self.per_class:
            for iou_type in self.coco.iou_types:
                values = self.coco.per_class(iou_type)
                metrics |= {f"{PREFIXES[iou_type]}AP/{self.class_name(label)}": value for label, value in values.items()}
        return metrics

    def reset(self) -> None:
        """Forget all images."""
        self.coco.reset()

    def class_name(self, label: int) -> str:
        """Return the name of a label, or the label itself where it has none."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def pr_curves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return class name -> recall (101,), precision (101,) at IoU 0.5."""
        return {self.class_name(label): curve for label, curve in self.coco.pr_curves().items()}

    def confusion(self, score_threshold: float = 0.5) -> np.ndarray:
        """Return (K+1, K+1) counts at IoU 0.5; rows: true class, then background; columns: predicted class, then missed."""
        return self.coco.confusion(len(self.class_names), score_threshold)

    def outcomes(self, score_threshold: float = 0.5) -> list[Outcome]:
        """Return what became of each image at IoU 0.5 with the detections from a score on; on rank 0 only."""
        return self.coco.outcomes(score_threshold)
