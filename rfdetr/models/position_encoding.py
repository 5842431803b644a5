"""Sine embedding of boxes, the position that the decoder's queries carry."""

import math

import torch
from torch import Tensor

from rfdetr.models.exporting import cached

_TEMPERATURE = 10000.0


def sine_box_embedding(boxes: Tensor, num_features: int) -> Tensor:
    """boxes (..., 4) cxcywh -> (..., 4 * num_features), the coordinates in the order y, x, w, h.

    Each coordinate becomes `num_features` values, sine and cosine in turn, at frequencies that fall geometrically.
    """
    x, y, width, height = boxes.unbind(-1)
    positions = torch.stack((y, x, width, height), dim=-1)[..., None]
    angles = positions * _frequencies(num_features, boxes.dtype, boxes.device)  # (..., 4, num_features / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


@cached
def _frequencies(num_features: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what an evaluation makes is used in training too
        pair = torch.arange(num_features // 2, dtype=dtype, device=device)
        return 2 * math.pi / _TEMPERATURE ** (2 * pair / num_features)
