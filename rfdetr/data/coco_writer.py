"""COCO's entries of images and objects as they are written: for shards, corrected copies and the made-up data set alike."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from rfdetr.data.annotations import RawSplit
from rfdetr.data.segmentations import decode


def image_entry(raw: RawSplit, index: int) -> dict[str, Any]:
    """Return the entry of an image."""
    height, width = raw.image_sizes[index].tolist()
    return {"id": int(raw.image_ids[index]), "file_name": raw.file_names[index], "height": height, "width": width}


def object_entry(
    number: int, *, image_id: int, category_id: int, box: list[float], area: float | None = None, is_crowd: bool = False,
    segmentation: list | dict | None = None,
) -> dict[str, Any]:
    """Return an annotation; `number` is its id and `box` is xyxy in pixels. What is None is not written."""
    left, top, right, bottom = box
    entry = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": [left, top, right - left, bottom - top],
             "area": area, "iscrowd": int(is_crowd), "segmentation": segmentation}
    return {key: value for key, value in entry.items() if value is not None}


def row_entry(raw: RawSplit, row: int, number: int) -> dict[str, Any]:
    """Return the annotation of a row of a split; a split without masks gives none."""
    area = float(raw.areas[row])
    return object_entry(
        number, image_id=int(raw.image_ids[raw.image_indices[row]]), category_id=int(raw.category_ids[row]),
        box=raw.boxes[row].tolist(), area=area if np.isfinite(area) else None, is_crowd=bool(raw.is_crowd[row]),
        segmentation=None if raw.segmentations is None else decode(raw.segmentations[row]))


def split_content(raw: RawSplit, images: Iterable[int] | None = None, rows: Iterable[int] | None = None) -> dict[str, Any]:
    """Return the content of a COCO file of a split, or of some of its images and objects; ids of annotations count from 1."""
    images, rows = (range(len(all_)) if some is None else some for some, all_ in ((images, raw.image_ids), (rows, raw.boxes)))
    return {
        "images": [image_entry(raw, index) for index in images],
        "annotations": [row_entry(raw, row, number) for number, row in enumerate(rows, start=1)],
        "categories": [category._asdict() for category in raw.categories],
    }
