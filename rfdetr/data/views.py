"""The part of a picture that a training sample shows, and which way round: the geometry of the augmentation.

A view is in fractions of the picture's sides, so that one view fits the annotations (pixels of the original), a picture
decoded at a lower resolution, and normalised boxes.
"""

from typing import NamedTuple

import numpy as np


class View(NamedTuple):
    """A rectangle of the picture, then turned over its diagonal, then mirrored; these make all rotations by right angles."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    hflip: bool = False
    vflip: bool = False
    transpose: bool = False

    @property
    def corner(self) -> np.ndarray:
        return np.array([self.left, self.top])

    @property
    def extent(self) -> np.ndarray:
        """Width and height."""
        return np.array([self.right - self.left, self.bottom - self.top])

    def shape(self, height: int, width: int) -> tuple[float, float]:
        """Return the (h, w) in pixels that the view has of a picture, turned as it is."""
        width, height = self.extent * (width, height)
        return (width, height) if self.transpose else (height, width)

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the view on the pixel grid of a picture, at least one pixel large: top, left, bottom, right."""
        left, top = min(round(self.left * width), width - 1), min(round(self.top * height), height - 1)
        return top, left, max(round(self.bottom * height), top + 1), max(round(self.right * width), left + 1)

    def snapped(self, height: int, width: int) -> "View":
        """Return the view with its edges on the pixel grid, so that boxes follow exactly what is cut out."""
        top, left, bottom, right = self.pixels(height, width)
        return self._replace(left=left / width, top=top / height, right=right / width, bottom=bottom / height)

    def move_points(self, points: np.ndarray) -> np.ndarray:
        """Move points (n, 2) x, y from fractions of the picture to fractions of the view; they may lie outside."""
        moved = self._turn((points - self.corner) / self.extent)
        return np.where([self.hflip, self.vflip], 1.0 - moved, moved)

    def move_boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move boxes from fractions of the picture to fractions of the view.

        Args:
            boxes: (n, 4) xyxy.

        Returns:
            boxes (n, 4) xyxy cut at the view's edges, and the share of each box's area that the view shows, (n,).
        """
        moved = (boxes.reshape(-1, 2, 2) - self.corner) / self.extent
        cut = moved.clip(0.0, 1.0)
        visible = (cut[:, 1] - cut[:, 0]).prod(axis=1) / (moved[:, 1] - moved[:, 0]).prod(axis=1)
        cut = self._turn(cut)
        flips = [self.hflip, self.vflip]
        first, second = np.where(flips, 1.0 - cut[:, 1], cut[:, 0]), np.where(flips, 1.0 - cut[:, 0], cut[:, 1])
        return np.concatenate([first, second], axis=1), visible

    def nearest_pixels(self, picture: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and columns of a picture (h, w) that the pixels of the view resized to (H, W) are nearest to.

        With `transpose`, the rows are those that the columns of the result are nearest to, and the other way round.
        """
        starts, extents, flips = self.corner[::-1], self.extent[::-1], (self.vflip, self.hflip)
        if self.transpose:
            size, flips = size[::-1], flips[::-1]
        grids = []
        for start, extent, flip, length, pixels in zip(starts, extents, flips, picture, size):
            centres = (start + extent * (np.arange(pixels) + 0.5) / pixels) * length
            indices = centres.astype(np.int64).clip(0, length - 1)
            grids.append(indices[::-1] if flip else indices)
        return grids[0], grids[1]

    def size_before_turn(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (h, w) that the rectangle is resized to for a result of (H, W)."""
        return size[::-1] if self.transpose else size

    def _turn(self, points: np.ndarray) -> np.ndarray:
        """Exchange x and y of points (..., 2) if the view does."""
        return points[..., ::-1] if self.transpose else points


FULL_VIEW = View()


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (h, w) of a picture resized to a short side, with its shape kept."""
    if height < width:
        return short_side, round(short_side * width / height)
    return round(short_side * height / width), short_side
