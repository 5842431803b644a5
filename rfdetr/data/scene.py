"""A picture and its objects on their way to a training sample."""

from typing import NamedTuple

import numpy as np
from torch import Tensor


class Scene(NamedTuple):
    """A picture and n objects on it."""

    pixels: Tensor  # (3, h, w) float32 in 0..1, or uint8
    boxes: np.ndarray  # (n, 4) float64 xyxy in fractions of the picture
    labels: Tensor  # (n,) int64
    areas: Tensor  # (n,) float32 in pixels, as annotated
    masks: Tensor | None  # (n, h, w) bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.pixels.shape[-2:]
        return height, width
