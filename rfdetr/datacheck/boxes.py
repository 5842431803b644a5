"""Findings about boxes, from the arrays alone: no picture is opened, and 10 million boxes take seconds."""

import numpy as np
import torch
from torchvision.ops import box_iou

from rfdetr.data.findings import Kind
from rfdetr.data.yolo_labels import ROUNDING
from rfdetr.datacheck.split_check import SplitCheck

EDGE_TOLERANCE = 1.0  # pixels; that much comes from counting pixels from 1, or from rounding
SPECK_SIDE, SPECK_AREA = 2.0, 10.0  # pixels and square pixels of the picture; boxes below both are slips of the mouse
TINY_SIDE = 8.0  # pixels at the training resolution, as the side of a square
TINY_SHARE = 0.1  # of the boxes that may be tiny without a finding
WHOLE_IMAGE = 0.98  # of the picture
WHOLE_SHARE = 0.1
EXTREME_ASPECT = 30.0
SAME_OBJECT_IOU = 0.8  # of boxes of one class; neighbours in crowded pictures stay below it
SAME_BOX_IOU = 0.98  # of boxes of different classes; a rider and his horse may overlap by 0.95
MANY_WRONG = 0.2  # of the boxes: not slips, but the wrong units or the wrong image sizes
ENOUGH_BOXES = 20  # for judging shares

KINDS = {
    "not_finite": Kind("warning", "boxes", "boxes with NaN or infinite numbers",
                       "training drops them; correct or delete them", "drops"),
    "zero_size": Kind("warning", "boxes", "boxes without an area", "training drops them; draw them again or delete them",
                      "drops"),
    "turned": Kind("warning", "boxes", "boxes with a negative width or height, probably drawn from another corner",
                   "training drops them; write them from the left top corner", "repairs"),
    "outside": Kind("warning", "boxes", "boxes that lie wholly outside their image",
                    "training drops them; look whether they belong to another image", "drops"),
    "over_edge": Kind("warning", "boxes", f"boxes that leave their image by more than {EDGE_TOLERANCE:.0f} pixel",
                      "training cuts them at the edge", "repairs"),
    "do_not_fit": Kind("error", "boxes", "boxes that do not fit their image, too many for slips",
                       "boxes must be x, y, width, height (not x1, y1, x2, y2) in pixels, of the stated width and height"),
    "speck": Kind("warning", "boxes", f"boxes thinner than {SPECK_SIDE:.0f} pixels and below {SPECK_AREA:.0f} square pixels",
                  "look whether they are slips of the mouse, and delete those"),
    "tiny": Kind("warning", "boxes", f"boxes of less than {TINY_SIDE:.0f} x {TINY_SIDE:.0f} pixels at the training resolution",
                 "the model hardly sees them: train at a higher resolution, or cut the images into tiles"),
    "whole_image": Kind("warning", "boxes", "boxes that cover their whole image",
                        "look whether they are labels of images rather than boxes around objects"),
    "extreme_aspect": Kind("warning", "boxes", f"boxes more than {EXTREME_ASPECT:.0f} times as long as wide",
                           "look whether they are slips; such boxes are hard to learn"),
    "duplicate": Kind("warning", "boxes", f"second boxes on an object of the same class (IoU above {SAME_OBJECT_IOU})",
                      "delete the later one of each pair: the model is taught to find the object twice", "drops"),
    "two_classes": Kind("warning", "boxes", "boxes that are there again with another class",
                        "delete the wrong one of each pair; one box can have one class only"),
    "too_many_objects": Kind("warning", "boxes", "images with more objects than the model has queries",
                             "raise model.num_queries, or cut the images into tiles: the objects beyond cannot be found"),
    "crowd": Kind("info", "boxes", "crowd regions", "training leaves them out, evaluation ignores what is found in them"),
}


def check_boxes(split: SplitCheck, input_size: tuple[int, int], num_queries: int) -> None:
    """Look at every box of a split.

    Args:
        input_size: (H, W) of the model's input, which pictures are resized to.
        num_queries: objects that the model can find in an image.
    """
    raw = split.raw
    finite = np.isfinite(raw.boxes).all(axis=1)
    split.note_objects("not_finite", KINDS["not_finite"], np.flatnonzero(~finite))
    _check_places(split, finite)
    _check_sizes(split, input_size)
    _check_overlaps(split)
    counts = split.counts(np.flatnonzero(split.usable & ~raw.is_crowd))
    crowded = np.flatnonzero(counts > num_queries)
    crowded = crowded[np.argsort(-counts[crowded], kind="stable")]
    split.note_images("too_many_objects", KINDS["too_many_objects"], crowded,
                      lambda index: f"{counts[index]} objects, {num_queries} queries")
    split.note_objects("crowd", KINDS["crowd"], np.flatnonzero(raw.is_crowd))


def _check_places(split: SplitCheck, finite: np.ndarray) -> None:
    """Find boxes without an area and those that do not lie in their image; many of these are one error instead."""
    raw = split.raw
    turned = finite & (split.sides < 0).any(axis=1) & (split.sides != 0).all(axis=1)
    empty = finite & (split.sides <= 0).any(axis=1) & ~turned
    finite = finite & ~turned & ~_reported_by_reader(split)
    outside = finite & ~empty & ~split.usable
    beyond = np.maximum(-raw.boxes[:, :2], raw.boxes[:, 2:] - split.limits[:, 2:]).max(axis=1, initial=0)
    over = finite & split.usable & (beyond > EDGE_TOLERANCE)
    wrong = outside | over
    if wrong.sum() >= max(ENOUGH_BOXES * MANY_WRONG, len(wrong) * MANY_WRONG) and len(wrong) >= ENOUGH_BOXES:
        split.note_objects("do_not_fit", KINDS["do_not_fit"], np.flatnonzero(wrong), _image_size(split))
    else:
        split.note_objects("outside", KINDS["outside"], np.flatnonzero(outside), _image_size(split))
        rows = np.flatnonzero(over)
        split.note_objects("over_edge", KINDS["over_edge"], rows[np.argsort(-beyond[rows], kind="stable")], _image_size(split))
    split.note_objects("zero_size", KINDS["zero_size"], np.flatnonzero(empty))
    split.note_objects("turned", KINDS["turned"], np.flatnonzero(turned))


def upright(boxes: np.ndarray) -> np.ndarray:
    """Return boxes (M, 4) xyxy with the smaller x and y in front."""
    corners = boxes.reshape(-1, 2, 2)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def _reported_by_reader(split: SplitCheck) -> np.ndarray:
    """Tell of which boxes (M,) the reader of YOLO's labels has said that a number is outside of 0..1."""
    if "outside_picture" not in split.reported:
        return np.zeros(len(split.raw.boxes), dtype=bool)
    numbers = np.concatenate([(split.raw.boxes[:, :2] + split.raw.boxes[:, 2:]) / 2, split.sides], axis=1) / split.limits
    return ((numbers < -ROUNDING) | (numbers > 1 + ROUNDING)).any(axis=1)


def _image_size(split: SplitCheck):
    return lambda row: f"on {split.limits[row, 0]:.0f} x {split.limits[row, 1]:.0f}"


def _check_sizes(split: SplitCheck, input_size: tuple[int, int]) -> None:
    objects = split.usable & ~split.raw.is_crowd
    if not objects.any():
        return
    sides = np.where(objects[:, None], split.sides, 1.0)
    areas = sides.prod(axis=1)
    specks = objects & (areas < SPECK_AREA) & (sides.min(axis=1) < SPECK_SIDE)
    split.note_objects("speck", KINDS["speck"], np.flatnonzero(specks))
    long = objects & ~specks & (sides.max(axis=1) > EXTREME_ASPECT * sides.min(axis=1))
    split.note_objects("extreme_aspect", KINDS["extreme_aspect"], np.flatnonzero(long))
    trained = sides_at_input(split, input_size)
    tiny = objects & (trained.prod(axis=1) < TINY_SIDE**2)
    whole = objects & (areas > WHOLE_IMAGE * split.limits[:, :2].prod(axis=1))
    for name, found, share in (("tiny", tiny, TINY_SHARE), ("whole_image", whole, WHOLE_SHARE)):
        if objects.sum() >= ENOUGH_BOXES and found.sum() > share * objects.sum():
            rows = np.flatnonzero(found)
            split.note_objects(name, KINDS[name], rows[np.argsort(areas[rows], kind="stable")])


def sides_at_input(split: SplitCheck, input_size: tuple[int, int]) -> np.ndarray:
    """Width and height of the boxes (M, 2) once the pictures are resized to (H, W)."""
    scales = np.array(input_size[::-1], dtype=np.float64) / split.limits[:, :2]
    return split.sides * (scales.min(axis=1, keepdims=True) if split.keeps_shape else scales)


def _check_overlaps(split: SplitCheck) -> None:
    """Find objects with two boxes; the later row of each pair is the one too many."""
    raw = split.raw
    partners: dict[str, dict[int, tuple[int, float]]] = {"duplicate": {}, "two_classes": {}}
    for rows in split.rows_by_image(np.flatnonzero(split.usable & ~raw.is_crowd)):
        boxes = torch.from_numpy(raw.boxes[rows])
        overlaps = np.triu(box_iou(boxes, boxes).numpy(), k=1)
        for first, second in zip(*np.nonzero(overlaps > SAME_OBJECT_IOU)):
            iou, one, other = float(overlaps[first, second]), int(rows[first]), int(rows[second])
            if raw.category_ids[one] == raw.category_ids[other]:
                partners["duplicate"][other] = one, iou
            elif iou > SAME_BOX_IOU:
                partners["two_classes"][other] = one, iou
    for name, found in partners.items():
        split.note_objects(name, KINDS[name], np.array(sorted(found), dtype=np.int64), _describe_partner(split, found))


def _describe_partner(split: SplitCheck, partners: dict[int, tuple[int, float]]):
    def describe(row: int) -> str:
        other, iou = partners[row]
        name, boxes = split.category_names.get(int(split.raw.category_ids[other]), "?"), split.raw.boxes[other]
        x, y, width, height = *boxes[:2].tolist(), *split.sides[other].tolist()
        return f"on {name} [{x:.6g}, {y:.6g}, {width:.6g}, {height:.6g}], IoU {iou:.2f}"
    return describe
