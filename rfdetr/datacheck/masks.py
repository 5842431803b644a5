"""Findings about masks: each is drawn as run lengths and compared with its box, its area and its neighbours."""

from collections import defaultdict

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

from rfdetr.data.findings import Kind
from rfdetr.data.segmentations import decode
from rfdetr.datacheck.split_check import SplitCheck

BOX_TOLERANCE = 2.0  # pixels between the edges of a mask and of its box ...
BOX_SHARE = 0.1  # ... and this share of the box's side; both have to be exceeded
HOLE_PIXELS = 3  # that a polygon covers beyond its mask's area
EXACT_SHARE = 0.2  # of the polygons that have just the annotated area, if areas are counts of pixels
RARE = 0.02  # of the masks; where more are in pieces, it is the way that hidden objects are drawn
ALL_NEIGHBOURS = np.ones((3, 3), dtype=bool)  # pixels that touch at a corner belong together

KINDS = {
    "bad_mask": Kind("error", "boxes", "masks that are neither polygons nor run lengths of their image",
                     "export the data set again; a segmentation model cannot be trained on them"),
    "without_mask": Kind("warning", "boxes", "objects with a box only, while others have a mask",
                         "a segmentation model is taught that they have no pixels: draw their masks, or train a detection model"),
    "empty_mask": Kind("warning", "boxes", "masks that cover no pixel", "draw them again or delete them"),
    "mask_box": Kind("warning", "boxes", "masks that disagree with their box",
                     "look which of the two is right; export boxes from the masks"),
    "hole": Kind("info", "boxes", "masks with a hole", "polygons fill holes; run lengths keep them"),
    "pieces": Kind("info", "boxes", "masks in several pieces, while hardly any other is",
                   "right if something lies in front of the object; otherwise look whether they are several objects"),
    "overlap": Kind("info", "boxes", "masks that share pixels with another of their image",
                    "a pixel can show one object only; look which of the two it is"),
}


def check_masks(split: SplitCheck) -> None:
    """Look at every mask of a split; one without any mask has no findings."""
    segmentations = split.raw.segmentations
    if not segmentations or not any(segmentations):
        return
    objects = np.flatnonzero(split.usable & ~split.raw.is_crowd)
    with_mask = np.array([bool(segmentations[row]) for row in objects], dtype=bool)
    if with_mask.any():
        split.note_objects("without_mask", KINDS["without_mask"], objects[~with_mask])
    found: dict[str, list[int]] = defaultdict(list)
    pixel_areas: dict[int, float] = {}
    details: dict[int, str] = {}
    for rows in split.rows_by_image(objects[with_mask]):
        _check_image(split, rows.tolist(), found, pixel_areas, details)
    wrong_boxes = {row for name in ("fractions", "do_not_fit") for row in split.marked_objects.get(name, np.array([])).tolist()}
    found["mask_box"] = [row for row in found["mask_box"] if row not in wrong_boxes]
    if len(found["pieces"]) > max(1, RARE * len(objects)):
        del found["pieces"]
    found["hole"] += _filled_holes(split, pixel_areas)
    for name, kind in KINDS.items():
        if found.get(name):
            split.note_objects(name, kind, np.array(sorted(found[name]), dtype=np.int64),
                               details.__getitem__ if name in ("mask_box", "overlap", "bad_mask") else None)


def _check_image(split: SplitCheck, rows: list[int], found: dict, pixel_areas: dict, details: dict) -> None:
    """Look at the masks of one image."""
    height, width = split.raw.image_sizes[split.raw.image_indices[rows[0]]].tolist()
    exact: dict[int, dict] = {}  # row -> run lengths, of masks that were not polygons
    for row in rows:
        segmentation = decode(split.raw.segmentations[row])
        try:
            runs = _run_lengths(segmentation, height, width)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            found["bad_mask"].append(row)
            details[row] = f"({error})"
            continue
        area = float(coco_mask.area(runs)) if runs else 0.0
        if area == 0 and (runs is None or split.sides[row].min() >= BOX_TOLERANCE):
            found["empty_mask"].append(row)
            continue
        extent = _polygon_extent(segmentation) if isinstance(segmentation, list) else _run_extent(runs)
        if isinstance(segmentation, list):
            pixel_areas[row] = area
            pieces, has_hole = len(segmentation), False
        else:
            exact[row] = runs
            pieces, has_hole = _pieces_and_holes(runs, extent)
        if _disagrees(extent.clip(0, split.limits[row]), split.raw.boxes[row].clip(0, split.limits[row])):
            found["mask_box"].append(row)
            details[row] = "but its mask spans [{:.6g}, {:.6g}, {:.6g}, {:.6g}]".format(*extent[:2], *(extent[2:] - extent[:2]))
        if pieces > 1:
            found["pieces"].append(row)
        if has_hole:
            found["hole"].append(row)
    _check_overlap(split, exact, found, details)


def _run_lengths(segmentation: list | dict, height: int, width: int) -> dict | None:
    """Draw a segmentation as run lengths; None for polygons that have fewer than three corners."""
    if isinstance(segmentation, list):
        if any(len(polygon) % 2 or not np.isfinite(np.asarray(polygon, dtype=np.float64)).all() for polygon in segmentation):
            raise ValueError("a polygon must be finite numbers x, y, x, y, ...")
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)) if polygons else None
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"run lengths of an image of (h, w) {segmentation['size']}, not {[height, width]}")
    if isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != height * width or min(segmentation["counts"]) < 0:
            raise ValueError(f"run lengths cover {sum(segmentation['counts'])} pixels of {height * width}")
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def _polygon_extent(segmentation: list) -> np.ndarray:
    points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _run_extent(runs: dict) -> np.ndarray:
    x, y, width, height = coco_mask.toBbox(runs).tolist()
    return np.array([x, y, x + width, y + height])


def _disagrees(extent: np.ndarray, box: np.ndarray) -> bool:
    allowed = np.maximum(BOX_TOLERANCE, BOX_SHARE * np.tile(box[2:] - box[:2], 2))
    return bool((np.abs(extent - box) > allowed).any())


def _pieces_and_holes(runs: dict, extent: np.ndarray) -> tuple[int, bool]:
    """Count the pieces of a mask, and tell whether it surrounds pixels that are not its own."""
    left, top, right, bottom = extent.astype(int).tolist()
    mask = np.pad(coco_mask.decode(runs)[top:bottom, left:right].astype(bool), 1)
    return ndimage.label(mask, ALL_NEIGHBOURS)[1], ndimage.label(~mask)[1] > 1


def _filled_holes(split: SplitCheck, pixel_areas: dict[int, float]) -> list[int]:
    """Return polygons that cover more than their mask's annotated area, in files whose areas are counts of pixels.

    Polygons made of masks lie within them, so that hardly any covers more unless it fills a hole.
    """
    rows = np.array(list(pixel_areas), dtype=np.int64)
    areas = split.raw.areas[rows]
    beyond = np.array(list(pixel_areas.values())) - areas
    if not len(rows) or (areas != np.round(areas)).any() or (beyond == 0).mean() < EXACT_SHARE:
        return []
    if (beyond > 1).sum() > max(1, RARE * len(rows)):
        return []
    return rows[beyond >= HOLE_PIXELS].tolist()


def _check_overlap(split: SplitCheck, exact: dict[int, dict], found: dict, details: dict) -> None:
    """Find masks drawn in pixels that cover the same ones; polygons of neighbours always do, a little."""
    if len(exact) < 2:
        return
    rows, runs = list(exact), list(exact.values())
    shared = np.triu(coco_mask.iou(runs, runs, [False] * len(runs)), k=1)
    for first, second in zip(*np.nonzero(shared)):
        found["overlap"].append(rows[second])
        details.setdefault(rows[second], f"with {split.describe_object(rows[first])}")
