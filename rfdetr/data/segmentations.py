"""Masks of objects: kept as encoded bytes, drawn one at a time where a sample needs them.

An encoded mask is the value of COCO's `segmentation` key: polygons [[x, y, x, y, ...], ...], or run lengths
{"size": [h, w], "counts": list or compressed string}.
"""

import pickle

import numpy as np
from pycocotools import mask as coco_mask

from rfdetr.data.views import View

MIN_NUMBERS = 6  # a polygon has three corners or more; pycocotools takes four numbers for a box


def encode(segmentation: list | dict | None) -> bytes:
    """Pack a segmentation as the file has it; no mask gives empty bytes."""
    return pickle.dumps(segmentation, protocol=5) if segmentation else b""


def decode(encoded: bytes) -> list | dict:
    """Return a segmentation as the file had it; no mask gives an empty list."""
    return pickle.loads(encoded) if encoded else []


def draw(encoded: bytes, height: int, width: int) -> np.ndarray:
    """Draw a mask (h, w) bool at the size of its image.

    Raises:
        ValueError: this is not a segmentation, or one of another image size.
    """
    segmentation = decode(encoded)
    if isinstance(segmentation, dict):
        return _draw_runs(segmentation, height, width)
    return _draw_polygons(_polygons(segmentation), height, width)


def draw_view(encoded: bytes, height: int, width: int, view: View, size: tuple[int, int]) -> np.ndarray:
    """Draw what a view shows of a mask, at the size (H, W) that the view is resized to.

    Polygons are moved first and drawn once, so that the full picture is never needed; run lengths are sampled (nearest).
    """
    segmentation = decode(encoded)
    if isinstance(segmentation, dict):
        rows, columns = view.nearest_pixels((height, width), size)
        shown = _draw_runs(segmentation, height, width)[rows][:, columns]
        return np.ascontiguousarray(shown.T if view.transpose else shown)
    moved = [view.move_points(polygon / (width, height)) * (size[1], size[0]) for polygon in _polygons(segmentation)]
    return _draw_polygons(moved, *size)


def _polygons(segmentation: list) -> list[np.ndarray]:
    """Points (n, 2) of each polygon; what has fewer than three corners covers nothing."""
    if not isinstance(segmentation, list):
        raise ValueError(f"a segmentation must be polygons or run lengths, not {segmentation!r}")
    try:
        flat = [np.asarray(numbers, dtype=np.float64) for numbers in segmentation]
    except (TypeError, ValueError):
        raise ValueError(f"a polygon must be a list of numbers x, y, x, y, ...: {str(segmentation)[:80]}") from None
    if any(numbers.ndim != 1 or len(numbers) % 2 or not np.isfinite(numbers).all() for numbers in flat):
        raise ValueError(f"a polygon must be a list of finite numbers x, y, x, y, ...: {str(segmentation)[:80]}")
    return [numbers.reshape(-1, 2) for numbers in flat if len(numbers) >= MIN_NUMBERS]


def _draw_polygons(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    runs = coco_mask.frPyObjects([points.ravel().tolist() for points in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def _draw_runs(runs: dict, height: int, width: int) -> np.ndarray:
    size, counts = runs.get("size"), runs.get("counts")
    if size != [height, width]:
        raise ValueError(f"its run lengths are of an image of (h, w) {size}, not {[height, width]}")
    if isinstance(counts, list):
        if sum(counts) != height * width or min(counts) < 0:
            raise ValueError(f"its run lengths cover {sum(counts)} pixels of {height * width}")
        runs = coco_mask.frPyObjects(runs, height, width)
    elif not isinstance(counts, (str, bytes)):
        raise ValueError(f"its run lengths are {counts!r}, not a list or a string")
    return coco_mask.decode(runs).astype(bool)
