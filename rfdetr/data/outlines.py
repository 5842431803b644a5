"""One polygon for a mask of any shape: its outline along the edges of pixels; parts and holes joined by bridges without width."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # x, y: down, right, up, left


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the polygon (n, 2) x, y around a mask (h, w) bool, which drawn by even and odd crossings is the mask again."""
    return bridged(_rings(mask))


def bridged(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Join polygons to one that covers what they cover: from its nearest corner each is walked to, around, and back."""
    joined, *rest = rings or [np.zeros((0, 2))]
    for ring in rest:
        here, there = _nearest(joined, ring)
        around = np.concatenate([ring[there:], ring[: there + 1]])
        joined = np.concatenate([joined[: here + 1], around, joined[here:]])
    return joined


def _nearest(points: np.ndarray, others: np.ndarray) -> tuple[int, int]:
    """Return which of the points (n, 2) and which of the others (m, 2) are nearest to each other."""
    best = (np.inf, 0, 0)
    for place, point in enumerate(others):  # one at a time: outlines may have many thousands of corners
        distances = ((points - point) ** 2).sum(axis=1)
        near = int(distances.argmin())
        best = min(best, (float(distances[near]), near, place))
    return best[1], best[2]


def _rings(mask: np.ndarray) -> list[np.ndarray]:
    """Return the closed ways along the edges of pixels, with the mask on one side."""
    padded = np.pad(mask.astype(np.int8), 1)
    onward: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # corner -> those that edges lead to
    change = padded[1:-1, 1:] - padded[1:-1, :-1]
    for y, x in np.argwhere(change).tolist():
        top, bottom = (x, y), (x, y + 1)
        start, end = (top, bottom) if change[y, x] > 0 else (bottom, top)
        onward[start].append(end)
    change = padded[1:, 1:-1] - padded[:-1, 1:-1]
    for y, x in np.argwhere(change).tolist():
        left, right = (x, y), (x + 1, y)
        start, end = (right, left) if change[y, x] > 0 else (left, right)
        onward[start].append(end)
    rings = []
    while onward:
        start = next(iter(onward))
        ring, direction = [start], None
        while True:
            choices = onward[ring[-1]]
            turns = [STEPS.index((end[0] - ring[-1][0], end[1] - ring[-1][1])) for end in choices]
            chosen = next((place for place, turn in enumerate(turns) if direction is not None and (turn - direction) % 4 == 1), 0)
            direction, end = turns[chosen], choices.pop(chosen)
            if not choices:
                del onward[ring[-1]]
            if end == start:
                break
            ring.append(end)
        rings.append(_corners(np.array(ring, dtype=np.float64)))
    return rings


def _corners(points: np.ndarray) -> np.ndarray:
    """Leave out the points (n, 2) that lie on the straight line between their neighbours."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
