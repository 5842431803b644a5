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


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of xyxy boxes (..., 4), broadcast -> (...)."""
    iou, _ = _iou_and_union(*a.split(2, dim=-1), *b.split(2, dim=-1))
    return iou


def generalized_box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU minus the share of the common hull that neither box covers, in [-1, 1]; arguments as in `box_iou`."""
    near_a, far_a = a.split(2, dim=-1)
    near_b, far_b = b.split(2, dim=-1)
    iou, union = _iou_and_union(near_a, far_a, near_b, far_b)
    hull = _product(torch.maximum(far_a, far_b) - torch.minimum(near_a, near_b))
    return iou - (hull - union) / hull.clamp(min=EPS)


def _iou_and_union(near_a: Tensor, far_a: Tensor, near_b: Tensor, far_b: Tensor) -> tuple[Tensor, Tensor]:
    intersection = _product((torch.minimum(far_a, far_b) - torch.maximum(near_a, near_b)).clamp(min=0))
    union = _product(far_a - near_a) + _product(far_b - near_b) - intersection
    return intersection / union.clamp(min=EPS), union


def _product(sides: Tensor) -> Tensor:
    width, height = sides.unbind(-1)
    return width * height
