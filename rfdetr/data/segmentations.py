"""Masks of objects: kept as encoded bytes, drawn one at a time where a sample needs them.

An encoded mask was checked when it was read (mask_reading.py), and is no longer what a file has: polygons lie near their
picture, run lengths cover it. No mask, and one without a pixel, is empty bytes.
"""

import pickle
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from rfdetr.data.views import View


def encode(segmentation: Sequence[Sequence[float]] | dict | None) -> bytes:
    """Pack polygons [[x, y, x, y, ...], ...] or run lengths {"size": [h, w], "counts": list or compressed string}."""
    if isinstance(segmentation, dict):
        return pickle.dumps(segmentation, protocol=5) if segmentation else b""
    return encode_polygons([segmentation or []])[0]


def encode_polygons(objects: Sequence[Sequence[Sequence[float]]]) -> list[bytes]:
    """Pack the polygons of several objects; those of whole hundredths, as most are, take half the memory of others."""
    parts = [np.asarray(numbers, dtype=np.float64) for polygons in objects for numbers in polygons]
    numbers = np.concatenate([*parts, np.zeros(0)])
    hundredths = np.rint(numbers * 100)
    is_exact = (hundredths / 100 == numbers) & (np.abs(hundredths) < 2**31)
    hundredths = np.where(is_exact, hundredths, 0).astype(np.int32)
    all_exact, ends, encoded = is_exact.all(), np.cumsum([0, *map(len, parts)]).tolist(), []
    first = 0  # polygon of the object
    for polygons in objects:
        last = first + len(polygons)
        exact = all_exact or is_exact[ends[first] : ends[last]].all()
        chosen = hundredths if exact else numbers
        packed = [chosen[ends[part] : ends[part + 1]].tobytes() for part in range(first, last)]
        encoded.append(pickle.dumps(tuple(packed) if exact else packed, protocol=5) if packed else b"")
        first = last
    return encoded


def decode(encoded: bytes) -> list[list[float]] | dict:
    """Return a segmentation as COCO's JSON has it; no mask gives an empty list."""
    segmentation = _unpack(encoded)
    return segmentation if isinstance(segmentation, dict) else [points.ravel().tolist() for points in segmentation]


def to_runs(encoded: bytes, height: int, width: int) -> dict:
    """Draw a mask as compressed run lengths of its image."""
    segmentation = _unpack(encoded)
    if not isinstance(segmentation, dict):
        return _polygon_runs(segmentation, height, width)
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def draw(encoded: bytes, height: int, width: int) -> np.ndarray:
    """Draw a mask (h, w) bool at the size of its image."""
    return coco_mask.decode(to_runs(encoded, height, width)).astype(bool)


def draw_view(encoded: bytes, height: int, width: int, view: View, size: tuple[int, int]) -> np.ndarray:
    """Draw what a view shows of a mask, at the size (H, W) that the view is resized to.

    Polygons are moved first and drawn once, so that the full picture is never needed; run lengths are sampled (nearest).
    """
    segmentation = _unpack(encoded)
    if isinstance(segmentation, dict):
        rows, columns = view.nearest_pixels((height, width), size)
        shown = draw(encoded, height, width)[rows][:, columns]
        return np.ascontiguousarray(shown.T if view.transpose else shown)
    moved = [view.move_points(polygon / (width, height)) * (size[1], size[0]) for polygon in segmentation]
    return coco_mask.decode(_polygon_runs(moved, *size)).astype(bool)


def _unpack(encoded: bytes) -> list[np.ndarray] | dict:
    """Return run lengths, or the points (n, 2) of each polygon."""
    segmentation = pickle.loads(encoded) if encoded else []
    if isinstance(segmentation, dict):
        return segmentation
    if isinstance(segmentation, tuple):
        return [np.frombuffer(part, dtype=np.int32).reshape(-1, 2) / 100 for part in segmentation]
    return [np.frombuffer(part).reshape(-1, 2) for part in segmentation]


def _polygon_runs(polygons: list[np.ndarray], height: int, width: int) -> dict:
    if not polygons:
        return coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects([points.ravel() for points in polygons], height, width))
