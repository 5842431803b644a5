"""A corrected copy of a data set's annotations, as COCO JSON whatever their format is; the originals stay untouched.

Mended: what the reader left out, boxes without an area, outside of their image or with NaN, second boxes on one object, boxes and
images of files that are missing or do not decode; boxes are cut at the edge. Everything that takes a look at the picture stays as
it is. Of an entry, the file has what training and evaluation use; annotation ids are new.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rfdetr.data.annotations import RawSplit
from rfdetr.data.segmentations import decode
from rfdetr.datacheck.dataset_check import DatasetCheck
from rfdetr.datacheck.split_check import SplitCheck
from rfdetr.errors import InputError

DROPPED_OBJECTS = ("duplicate", "empty_mask", "bad_mask")  # beside those that are not usable
DROPPED_IMAGES = ("missing_image", "undecodable")
SPLITS_FILE = "splits.yaml"


def write_fixed(check: DatasetCheck, folder: Path) -> Path:
    """Write ``train.json`` and so on, and a configuration file with their paths, which is returned.

    Raises:
        InputError: the folder holds something, or the data set is one of shards.
    """
    check_target(folder)
    if any(split.raw.open_image is not None for split in check.splits.values()):
        raise InputError(f"--fix: {check.dataset_dir} holds shards; mend the data set that they were made of, and pack it again")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, split in check.splits.items():
        (folder / f"{name}.json").write_text(json.dumps(fixed_content(split)), encoding="utf-8")
        paths[name] = {"annotations": f"{name}.json", "images": str(Path(split.raw.image_root).resolve())}
    content = {"data": {"dataset_dir": str(folder.resolve()), "format": "coco", "splits": paths}}
    (folder / SPLITS_FILE).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder / SPLITS_FILE


def check_target(folder: Path) -> None:
    """Refuse a folder that holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--fix {folder}: is there already and not an empty folder; name a new one")


def fixed_content(split: SplitCheck) -> dict[str, Any]:
    """Return the corrected annotations of a split as the content of a COCO file."""
    raw = split.raw
    kept_images = np.ones(len(raw.image_ids), dtype=bool)
    for name in DROPPED_IMAGES:
        kept_images[split.marked_images.get(name, [])] = False
    kept = split.usable & kept_images[raw.image_indices]
    for name in DROPPED_OBJECTS:
        kept[split.marked_objects.get(name, [])] = False
    boxes = raw.boxes.clip(0, split.limits)
    return {
        "images": [{"id": int(raw.image_ids[index]), "file_name": raw.file_names[index],
                    "height": int(raw.image_sizes[index, 0]), "width": int(raw.image_sizes[index, 1])}
                   for index in np.flatnonzero(kept_images)],
        "annotations": [_annotation(raw, number, row, boxes[row]) for number, row in enumerate(np.flatnonzero(kept), start=1)],
        "categories": [category._asdict() for category in raw.categories],
    }


def _annotation(raw: RawSplit, number: int, row: int, box: np.ndarray) -> dict[str, Any]:
    x, y, right, bottom = box.tolist()
    is_cut = bool((np.abs(box - raw.boxes[row]) > 0).any())
    area = float(raw.areas[row])
    box_area = (right - x) * (bottom - y)
    return {
        "id": number, "image_id": int(raw.image_ids[raw.image_indices[row]]), "category_id": int(raw.category_ids[row]),
        "bbox": [x, y, right - x, bottom - y], "iscrowd": int(raw.is_crowd[row]),
        "area": min(area, box_area) if np.isfinite(area) and is_cut else area if np.isfinite(area) else box_area,
        "segmentation": _plain(decode(raw.segmentations[row])) if raw.segmentations else [],
    }


def _plain(segmentation: list | dict) -> list | dict:
    """Make a segmentation writable as JSON: compressed run lengths may be bytes."""
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), bytes):
        return {**segmentation, "counts": segmentation["counts"].decode("ascii")}
    return segmentation
