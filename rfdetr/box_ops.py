"""Box formats and overlaps as pure functions; the last axis of every argument holds the four numbers of a box.

Overlaps broadcast like arithmetic: two lists of equal length give one value a pair, ``a[:, None]`` with ``b[None]``
gives the whole table. They work in the precision of their arguments; callers in mixed precision cast to float32 first.
"""

import torch
from torch import Tensor

EPS = 1e-7  # smallest divisor, so that boxes without area overlap by 0 instead of NaN


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Turn centre and size (..., 4) into two corners; a negative size counts as 0."""
    center, size = boxes.split(2, dim=-1)
    half = size.clamp(min=0) / 2
    return torch.cat([center - half, center + half], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """xyxy boxes (..., 4) -> areas (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes (..., 4), broadcast -> (...)."""
    return _iou_and_union(a, b)[0]


def generalized_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU minus the share of the common hull that neither box covers, in [-1, 1]; arguments as in `box_iou`."""
    iou, union = _iou_and_union(a, b)
    sides = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = sides[..., 0] * sides[..., 1]
    return iou - (hull - union) / hull.clamp(min=EPS)


def _iou_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = box_area(a) + box_area(b) - intersection
    return intersection / union.clamp(min=EPS), union
