"""A picture and its objects on their way to a training sample."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rfdetr.data.views import View

MIN_VISIBLE = 0.2  # an object that shows less than this share of itself after mixing is dropped


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

    def with_objects(self, chosen: np.ndarray) -> "Scene":
        """Return the picture with some of its objects, (n,) bool."""
        rows = torch.from_numpy(np.flatnonzero(chosen))
        masks = None if self.masks is None else self.masks[rows]
        return self._replace(boxes=self.boxes[chosen], labels=self.labels[rows], areas=self.areas[rows], masks=masks)

    def with_objects_of(self, others: Sequence["Scene"]) -> "Scene":
        """Return the picture with the objects of other scenes of its size behind its own."""
        scenes = [self, *others]
        return self._replace(
            boxes=np.concatenate([scene.boxes for scene in scenes]), labels=torch.cat([scene.labels for scene in scenes]),
            areas=torch.cat([scene.areas for scene in scenes]),
            masks=None if self.masks is None else torch.cat([scene.masks for scene in scenes]))

    def cut(self, top: int, left: int, size: tuple[int, int]) -> "Scene":
        """Cut out a window of (h, w) pixels; objects of which it shows too little are dropped."""
        (height, width), (bottom, right) = self.size, (top + size[0], left + size[1])
        boxes, visible = View(left / width, top / height, right / width, bottom / height).move_boxes(self.boxes)
        masks = None if self.masks is None else self.masks[:, top:bottom, left:right]
        scene = self._replace(pixels=self.pixels[:, top:bottom, left:right], boxes=boxes, masks=masks)
        return scene.with_objects(visible >= MIN_VISIBLE)

    def placed(self, top: int, left: int, size: tuple[int, int]) -> "Scene":
        """Put the scene into a larger black picture of (H, W)."""
        pixels = self.pixels.new_zeros(3, *size)
        masks = None if self.masks is None else self.masks.new_zeros(len(self.boxes), *size)
        for large, small in ((pixels, self.pixels), (masks, self.masks)):
            if small is not None:
                large[:, top : top + self.size[0], left : left + self.size[1]] = small
        boxes = (self.boxes * np.tile(self.size[::-1], 2) + (left, top, left, top)) / np.tile(size[::-1], 2)
        return self._replace(pixels=pixels, boxes=boxes, masks=masks)

    def shapes(self) -> Tensor:
        """Return the pixels of each object, (n, h, w) bool: those of its mask, or where it has none those of its box."""
        height, width = self.size
        shapes = torch.zeros(len(self.boxes), height, width, dtype=torch.bool)
        corners = np.rint(self.boxes * (width, height, width, height)).astype(int)
        corners[:, :2] = np.minimum(corners[:, :2], (width - 1, height - 1))  # each has a pixel at least
        for shape, (left, top, right, bottom) in zip(shapes, corners):
            shape[top : max(bottom, top + 1), left : max(right, left + 1)] = True
        if self.masks is not None:
            has_mask = torch.from_numpy(_num_pixels(self.masks) > 0)
            shapes[has_mask] = self.masks[has_mask]
        return shapes

    def pasted_over(self, other: "Scene") -> "Scene":
        """Paste the objects of another scene of this size over this one; what they hide is no longer part of the objects here."""
        covered, shapes = torch.from_numpy(other.shapes().numpy().any(axis=0)), self.shapes()
        visible = _num_pixels(shapes & ~covered) / _num_pixels(shapes)
        boxes, masks = self.boxes.copy(), self.masks
        if masks is not None:
            masks = masks & ~covered
            for row in np.flatnonzero((visible >= MIN_VISIBLE) & (visible < 1) & (_num_pixels(masks) > 0)):
                boxes[row] = _extent(masks[row], boxes[row])
        pixels = torch.where(covered, other.pixels, self.pixels)
        scene = self._replace(pixels=pixels, boxes=boxes, masks=masks).with_objects(visible >= MIN_VISIBLE)
        return scene.with_objects_of([other])


def _num_pixels(masks: Tensor) -> np.ndarray:
    """Count the pixels of masks (n, h, w) bool; torch's own sum takes a hundred times as long on a CPU."""
    return np.array([np.count_nonzero(mask) for mask in masks.numpy()], dtype=np.int64)


def _extent(mask: Tensor, box: np.ndarray) -> np.ndarray:
    """Return the part of a box, xyxy in fractions, that a mask (h, w) with a pixel still reaches."""
    ends = []
    for line in (mask.any(0), mask.any(1)):
        places = line.nonzero()
        ends.append((int(places[0]) / len(line), (int(places[-1]) + 1) / len(line)))
    (left, right), (top, bottom) = ends
    return np.array([max(box[0], left), max(box[1], top), min(box[2], right), min(box[3], bottom)])
