"""Formats of boxes; overlaps are torchvision's."""

import torch
from torch import Tensor

EPS = 1e-7  # smallest divisor, so that boxes without area overlap by 0 instead of NaN


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Turn centre and size (..., 4) into two corners; a negative size counts as 0."""
    center, size = boxes.split(2, dim=-1)
    half = size.clamp(min=0) / 2
    return torch.cat([center - half, center + half], dim=-1)
