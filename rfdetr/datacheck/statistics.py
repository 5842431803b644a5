"""Numbers about a split: how many images and boxes, how large they are at the training resolution, what memory they take."""

from dataclasses import dataclass

import numpy as np

from rfdetr.data.label_map import LabelMap
from rfdetr.datacheck.boxes import TINY_SIDE, sides_at_input
from rfdetr.datacheck.classes import class_counts
from rfdetr.datacheck.split_check import SplitCheck

SMALL_SIDE, MEDIUM_SIDE = 32, 96  # pixels, COCO's limits as sides of squares
BYTES_AN_OBJECT = 16 + 8 + 4 + 1  # box, label, area, crowd
BYTES_AN_IMAGE = 8 + 16 + 8  # id, size, first row


@dataclass(frozen=True, kw_only=True)
class SplitStatistics:
    """What a split holds; boxes are those that training keeps, without crowd regions."""

    images: int
    background_images: int
    boxes: int
    crowds: int
    class_counts: dict[str, int]
    box_sizes: dict[str, float]  # share of the boxes that are tiny, small (tiny ones too), medium and large
    median_objects: float  # an image
    max_objects: int
    memory_mb: float  # of the annotations, which all loader processes share


def gather_statistics(split: SplitCheck, label_map: LabelMap | None, input_size: tuple[int, int]) -> SplitStatistics:
    """Count what is in a split.

    Args:
        label_map: of the train split; None leaves out the classes.
        input_size: (H, W) of the model's input.
    """
    raw = split.raw
    rows = np.flatnonzero(split.usable & ~raw.is_crowd)
    counts = split.counts(rows)
    sides = np.sqrt(sides_at_input(split, input_size)[rows].prod(axis=1))
    names = max(map(len, raw.file_names), default=0) * len(raw.file_names)
    masks = sum(map(len, raw.segmentations)) + 8 * len(raw.boxes) if raw.segmentations else 0
    return SplitStatistics(
        images=len(raw.image_ids), background_images=int((split.counts() == 0).sum()), boxes=len(rows),
        crowds=int(raw.is_crowd.sum()),
        class_counts=dict(zip(label_map.category_names, class_counts(split, label_map).tolist())) if label_map else {},
        box_sizes={name: round(float(chosen.mean()), 4) if len(rows) else 0.0 for name, chosen in {
            "tiny": sides < TINY_SIDE, "small": sides < SMALL_SIDE, "medium": (sides >= SMALL_SIDE) & (sides < MEDIUM_SIDE),
            "large": sides >= MEDIUM_SIDE}.items()},
        median_objects=float(np.median(counts)), max_objects=int(counts.max(initial=0)),
        memory_mb=round((len(raw.boxes) * BYTES_AN_OBJECT + len(counts) * BYTES_AN_IMAGE + names + masks) / 1e6, 2),
    )
