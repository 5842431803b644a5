"""Plane geometry of polygons, points (n, 2) x, y that are joined in their order and back to the first."""

import numpy as np


def outline_length(points: np.ndarray) -> float:
    """Steps that it takes to walk around a polygon on the pixel grid, which is what drawing it costs."""
    return float(np.abs(points - np.roll(points, -1, axis=0)).max(axis=1).sum())


def cut(points: np.ndarray, low: tuple[float, float], high: tuple[float, float]) -> np.ndarray:
    """Cut a polygon at the sides of a rectangle; inside of it nothing changes (Sutherland and Hodgman's way)."""
    for axis in (0, 1):
        for sign, limit in ((1, high[axis]), (-1, -low[axis])):
            points = _cut_at_line(points, axis, sign, limit)
    return points


def _cut_at_line(points: np.ndarray, axis: int, sign: int, limit: float) -> np.ndarray:
    """Keep what has `sign * points[axis] <= limit`."""
    if not len(points):
        return points
    beyond = sign * points[:, axis] - limit
    following = np.roll(points, -1, axis=0)
    beyond_following = np.roll(beyond, -1)
    crosses = (beyond > 0) != (beyond_following > 0)
    share = np.where(crosses, beyond, 0.0) / np.where(crosses, beyond - beyond_following, 1.0)
    crossings = points + share[:, None] * (following - points)
    crossings[:, axis] = sign * limit
    both = np.stack([points, crossings], axis=1)  # each corner, and where the side behind it crosses the line
    return both[np.stack([beyond <= 0, crosses], axis=1)]
