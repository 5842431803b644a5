"""What the metrics keep of one image: detections and targets as small arrays, masks as run lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.mask import frPyObjects
from torch import Tensor

from rfdetr.run_length import run_lengths

RLE = dict[str, Any]  # {"size": [h, w], "counts": bytes}, COCO's compressed run lengths


@dataclass
class Instances:
    """Boxes of one image (n, 4) xyxy in pixels with their labels (n,), and masks where they are evaluated."""

    boxes: np.ndarray
    labels: np.ndarray
    masks: list[RLE] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, kept: np.ndarray) -> Instances:
        """Return those whose entry in `kept` (n,) bool is set."""
        arrays = {name: value if value is None else _kept(value, kept) for name, value in vars(self).items()}
        return type(self)(**arrays)

    @property
    def xywh(self) -> np.ndarray:
        """Boxes as COCO writes them, (n, 4) float64."""
        boxes = self.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        return boxes

    @property
    def areas_of_boxes(self) -> np.ndarray:
        """(n,) float64."""
        return self.xywh[:, 2:].prod(axis=1)


@dataclass(kw_only=True)
class Detections(Instances):
    """What the model found in one image; scores (n,)."""

    scores: np.ndarray


@dataclass(kw_only=True)
class Targets(Instances):
    """What is annotated in one image; crowd (n,) bool, areas (n,) float64 in pixels."""

    crowd: np.ndarray
    areas: np.ndarray


@dataclass
class ImageRecord:
    """One evaluated image; `image_id` orders images where every target has one, `place` is where it came among all."""

    detections: Detections
    targets: Targets
    image_id: int | None = None
    place: int = 0


def make_record(
    result: dict[str, Tensor], target: dict[str, Tensor], encode: Callable[[Tensor], list[RLE]] | None
) -> ImageRecord:
    """Copy what the metrics need of one image to the CPU; `encode` turns masks (n, h, w) into RLEs (None: no masks).

    Detections whose score or box is not finite are left out: they cannot be ranked.
    """
    scores, boxes = to_numpy(result["scores"]), to_numpy(result["boxes"]).reshape(-1, 4)
    finite = np.isfinite(scores) & np.isfinite(boxes).all(axis=1)
    masks = None
    if encode:
        sizes = [tuple(side["masks"].shape[-2:]) for side in (result, target)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"masks of {sizes[0]} pixels were found, those of the target have {sizes[1]}; resize one of them")
        masks = encode(result["masks"])
    detections = Detections(boxes, to_numpy(result["labels"]), masks, scores=scores)
    detections = detections if finite.all() else detections[finite]
    image_id = target.get("image_id")
    return ImageRecord(detections, _make_targets(target, encode), None if image_id is None else int(image_id))


def _make_targets(target: dict[str, Tensor], encode: Callable[[Tensor], list[RLE]] | None) -> Targets:
    boxes = Instances(to_numpy(target["boxes"]).reshape(-1, 4), to_numpy(target["labels"]))
    crowd = to_numpy(target["iscrowd"]).astype(bool) if "iscrowd" in target else np.zeros(len(boxes), dtype=bool)
    areas = to_numpy(target["area"]).astype(np.float64) if "area" in target else boxes.areas_of_boxes
    return Targets(boxes.boxes, boxes.labels, encode(target["masks"]) if encode else None, crowd=crowd, areas=areas)


def encode_masks(masks: Tensor) -> list[RLE]:
    """Turn bool masks (n, h, w) or (n, 1, h, w) into compressed run lengths."""
    lengths = run_lengths(masks)
    return frPyObjects(lengths, *masks.shape[-2:]) if lengths else []


def _kept(values: np.ndarray | list[RLE], kept: np.ndarray) -> np.ndarray | list[RLE]:
    return values[kept] if isinstance(values, np.ndarray) else [value for value, is_kept in zip(values, kept) if is_kept]


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copy a tensor to the CPU as an array of its own (a view would keep a whole batch alive)."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).cpu().numpy().copy()
