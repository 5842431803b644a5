"""Findings about masks, which the reader has checked: each is drawn and compared with its box, its area and its neighbours."""

from collections import defaultdict

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

from rfdetr.data.findings import Kind
from rfdetr.data.segmentations import decode, to_runs
from rfdetr.datacheck.boxes import ENOUGH_BOXES, MANY_WRONG
from rfdetr.datacheck.split_check import SplitCheck

BOX_TOLERANCE = 2.0  # pixels between the edges of a mask and of its box ...
BOX_SHARE = 0.1  # ... and this share of the box's side; both have to be exceeded
HOLE_PIXELS = 3  # that a polygon covers beyond its mask's area
EXACT_SHARE = 0.2  # of the polygons that have just the annotated area, if areas are counts of pixels
RARE = 0.02  # of the masks; where more are in pieces, it is the way that hidden objects are drawn
SAMPLE = 300  # masks that are compared with their boxes at first
ALL_NEIGHBOURS = np.ones((3, 3), dtype=bool)  # pixels that touch at a corner belong together

KINDS = {
    "without_mask": Kind("warning", "boxes", "objects without a mask, or with one that covers no pixel, while others have one",
                         "training uses their class and box alone, and evaluation counts their masks as missed: draw them"),
    "mask_place": Kind("error", "boxes", "masks that reach out of their box, too many for slips",
                       "masks must be in pixels, x before y, run lengths column by column, for the stated width and height"),
    "mask_box": Kind("warning", "boxes", "masks that disagree with their box",
                     "look which of the two is right; export boxes from the masks"),
    "hole": Kind("info", "boxes", "masks with a hole", "polygons fill holes; run lengths keep them"),
    "pieces": Kind("info", "boxes", "masks in several pieces, while hardly any other is",
                   "right if something lies in front of the object; otherwise look whether they are several objects"),
    "overlap": Kind("info", "boxes", "masks that share pixels with another of their image",
                    "a pixel can show one object only; look which of the two it is"),
}


def check_masks(split: SplitCheck, *, quick: bool) -> None:
    """Look at every mask of a split; one without any mask has no findings. The quick check draws none."""
    segmentations = split.raw.segmentations
    if not segmentations or not any(segmentations):
        return
    objects = np.flatnonzero(split.usable & ~split.raw.is_crowd)
    with_mask = np.array([bool(segmentations[row]) for row in objects], dtype=bool)
    if with_mask.any():
        split.note_objects("without_mask", KINDS["without_mask"], objects[~with_mask])
    outside = _outside(split, objects[with_mask])
    split.note_objects("mask_place", KINDS["mask_place"], outside, lambda row: _describe_extent(_extent(split, row)))
    if quick:
        return
    found: dict[str, list[int]] = defaultdict(list)
    pixel_areas: dict[int, float] = {}
    details: dict[int, str] = {}
    for rows in split.rows_by_image(objects[with_mask]):
        _check_image(split, rows.tolist(), found, pixel_areas, details)
    wrong_boxes = {*split.marked_objects.get("do_not_fit", np.array([])).tolist(), *outside.tolist()}
    found["mask_box"] = [row for row in found["mask_box"] if row not in wrong_boxes]
    if len(found["pieces"]) > max(1, RARE * len(objects)):
        del found["pieces"]
    found["hole"] += _filled_holes(split, pixel_areas)
    for name in ("mask_box", "hole", "pieces", "overlap"):
        split.note_objects(name, KINDS[name], np.array(sorted(found[name]), dtype=np.int64),
                           details.__getitem__ if name in ("mask_box", "overlap") else None)


def _outside(split: SplitCheck, rows: np.ndarray) -> np.ndarray:
    """Return the objects whose masks reach out of their boxes, where these are many; a few are looked at first."""
    for chosen in (rows[:: max(1, len(rows) // SAMPLE)], rows):
        found = np.array([_reaches_out(split, row) for row in chosen.tolist()], dtype=bool)
        if found.sum() < max(ENOUGH_BOXES * MANY_WRONG, len(found) * MANY_WRONG) or len(found) < ENOUGH_BOXES:
            return rows[:0]
    return rows[found]


def _reaches_out(split: SplitCheck, row: int) -> bool:
    extent, box = _extent(split, row).clip(0, split.limits[row]), split.raw.boxes[row].clip(0, split.limits[row])
    return _exceeds(np.concatenate([box[:2] - extent[:2], extent[2:] - box[2:]]), box)


def _extent(split: SplitCheck, row: int) -> np.ndarray:
    segmentation, (width, height) = decode(split.raw.segmentations[row]), split.limits[row, :2].astype(int).tolist()
    return (_polygon_extent(segmentation) if isinstance(segmentation, list)
            else _run_extent(to_runs(split.raw.segmentations[row], height, width)))


def _describe_extent(extent: np.ndarray) -> str:
    return "but its mask spans [{:.6g}, {:.6g}, {:.6g}, {:.6g}]".format(*extent[:2], *(extent[2:] - extent[:2]))


def _check_image(split: SplitCheck, rows: list[int], found: dict, pixel_areas: dict, details: dict) -> None:
    """Look at the masks of one image."""
    height, width = split.raw.image_sizes[split.raw.image_indices[rows[0]]].tolist()
    exact: dict[int, dict] = {}  # row -> run lengths, of masks that were not polygons
    for row in rows:
        segmentation = decode(split.raw.segmentations[row])
        runs = to_runs(split.raw.segmentations[row], height, width)
        area = float(coco_mask.area(runs))
        extent = _polygon_extent(segmentation) if isinstance(segmentation, list) else _run_extent(runs)
        if isinstance(segmentation, list):
            pixel_areas[row] = area
            pieces, has_hole = len(segmentation), False
        else:
            exact[row] = runs
            pieces, has_hole = _pieces_and_holes(runs, extent)
        if _disagrees(extent.clip(0, split.limits[row]), split.raw.boxes[row].clip(0, split.limits[row])):
            found["mask_box"].append(row)
            details[row] = _describe_extent(extent)
        if pieces > 1:
            found["pieces"].append(row)
        if has_hole:
            found["hole"].append(row)
    _check_overlap(split, exact, found, details)


def _polygon_extent(segmentation: list) -> np.ndarray:
    points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _run_extent(runs: dict) -> np.ndarray:
    x, y, width, height = coco_mask.toBbox(runs).tolist()
    return np.array([x, y, x + width, y + height])


def _disagrees(extent: np.ndarray, box: np.ndarray) -> bool:
    return _exceeds(np.abs(extent - box), box)


def _exceeds(distances: np.ndarray, box: np.ndarray) -> bool:
    allowed = np.maximum(BOX_TOLERANCE, BOX_SHARE * np.tile(box[2:] - box[:2], 2))
    return bool((distances > allowed).any())


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
