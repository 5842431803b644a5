"""Read COCO annotation files (also Roboflow's exports) into arrays, with a clear message for everything wrong in them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.data.annotations import RawSplit
from rfdetr.data.label_map import Category
from rfdetr.data.segmentations import encode
from rfdetr.errors import InputError

EXPORT_AGAIN = "correct the file, or export the data set again"


def read_coco(annotation_file: Path, image_root: Path, *, with_masks: bool = False) -> RawSplit:
    """Read one annotation file.

    Args:
        image_root: folder that the file's `file_name` entries are relative to.
        with_masks: keep the segmentations, encoded.

    Raises:
        InputError: the file is missing or not what it should be.
    """
    content = _read_json(annotation_file)
    images, annotations, categories = (_rows(content, name, annotation_file) for name in ("images", "annotations", "categories"))
    image_ids = _integers(images, "images", "id", annotation_file)
    sizes = [_integers(images, "images", side, annotation_file) for side in ("height", "width")]
    _check_images(images, image_ids, np.stack(sizes, axis=1), annotation_file)
    found_categories = _read_categories(categories, annotation_file)
    category_ids = _integers(annotations, "annotations", "category_id", annotation_file)
    known = [category.id for category in found_categories]
    rule = f"the file's categories are {_short(known)}"
    _refuse(annotations, ~np.isin(category_ids, known), annotation_file, "category_id", rule)
    return RawSplit(
        source=annotation_file, image_root=image_root, image_ids=image_ids, file_names=[image["file_name"] for image in images],
        image_sizes=np.stack(sizes, axis=1), categories=found_categories, category_ids=category_ids,
        image_indices=_image_indices(annotations, image_ids, annotation_file), boxes=_read_boxes(annotations, annotation_file),
        areas=np.array([_number_or_nan(row.get("area")) for row in annotations], dtype=np.float64),
        is_crowd=np.array([bool(row.get("iscrowd", 0)) for row in annotations], dtype=bool),
        segmentations=[encode(row.get("segmentation")) for row in annotations] if with_masks else None,
    )


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such annotation file; check the folder of the data set and its format") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}: not valid JSON at {place} ({error.msg}); {EXPORT_AGAIN}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid JSON, byte {error.start} is not UTF-8; {EXPORT_AGAIN}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, but COCO annotations are an object with the lists images, "
                         f"annotations and categories; {EXPORT_AGAIN}")
    return content


def _rows(content: dict, name: str, path: Path) -> list[dict]:
    """Return one of the file's lists of objects."""
    if name not in content:
        raise InputError(f"{path}: the list {name!r} is missing (found: {_short(list(content))}); {EXPORT_AGAIN}")
    rows = content[name]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: {name!r} must be a list of objects; {EXPORT_AGAIN}")
    return rows


def _column(rows: list[dict], name: str, key: str, path: Path) -> list:
    try:
        return [row[key] for row in rows]
    except KeyError:
        index = next(index for index, row in enumerate(rows) if key not in row)
        raise InputError(f"{path}: {_entry(rows, name, index)} has no {key!r}; {EXPORT_AGAIN}") from None


def _integers(rows: list[dict], name: str, key: str, path: Path) -> np.ndarray:
    """Return a column (n,) int64."""
    column = _column(rows, name, key, path)
    try:
        return np.array(column, dtype=np.int64).reshape(len(rows))
    except (TypeError, ValueError, OverflowError):
        index = next(index for index, value in enumerate(column) if not _is_integer(value))
        raise InputError(f"{path}: {_entry(rows, name, index)} has {key!r} {column[index]!r}, which is not a whole number; "
                         f"{EXPORT_AGAIN}") from None


def _is_integer(value: Any) -> bool:
    try:
        return np.array(value, dtype=np.int64).ndim == 0
    except (TypeError, ValueError, OverflowError):
        return False


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(number, (int, float)) for number in value)


def _number_or_nan(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else np.nan


def _entry(rows: list[dict], name: str, index: int) -> str:
    """Name an entry in a message by its id, or its place where it has none."""
    return f"entry {index} of {name}" if "id" not in rows[index] else f"the entry of {name} with id {rows[index]['id']}"


def _check_images(images: list[dict], image_ids: np.ndarray, sizes: np.ndarray, path: Path) -> None:
    if not images:
        raise InputError(f"{path}: lists no images; {EXPORT_AGAIN}")
    names = _column(images, "images", "file_name", path)
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name or "\0" in name:
            raise InputError(f"{path}: {_entry(images, 'images', index)} has 'file_name' {name!r}; {EXPORT_AGAIN}")
    if len(np.unique(image_ids)) < len(image_ids):
        twice = [id_ for id_, count in Counter(image_ids.tolist()).items() if count > 1]
        files = [name for name, id_ in zip(names, image_ids) if id_ == twice[0]]
        raise InputError(f"{path}: image id {twice[0]} is used {len(files)} times ({_short(files)}), {len(twice)} ids in all; "
                         f"{EXPORT_AGAIN}")
    flat = np.flatnonzero((sizes < 1).any(axis=1))
    if len(flat):
        raise InputError(f"{path}: {_entry(images, 'images', flat[0])} has the size (h, w) {sizes[flat[0]].tolist()}; "
                         f"{EXPORT_AGAIN}")


def _read_categories(rows: list[dict], path: Path) -> list[Category]:
    if not rows:
        raise InputError(f"{path}: lists no categories; {EXPORT_AGAIN}")
    ids = _integers(rows, "categories", "id", path).tolist()
    twice = [id_ for id_, count in Counter(ids).items() if count > 1]
    if twice:
        raise InputError(f"{path}: category id {twice[0]} is used more than once; {EXPORT_AGAIN}")
    names = _column(rows, "categories", "name", path)
    return [Category(id_, str(name), row.get("supercategory")) for id_, name, row in zip(ids, names, rows)]


def _image_indices(annotations: list[dict], image_ids: np.ndarray, path: Path) -> np.ndarray:
    """Return which of the file's images each annotation belongs to, (M,) int64."""
    wanted = _integers(annotations, "annotations", "image_id", path)
    order = np.argsort(image_ids, kind="stable")
    places = np.searchsorted(image_ids[order], wanted).clip(max=len(order) - 1)
    _refuse(annotations, image_ids[order][places] != wanted, path, "image_id", "no image of the file has this id")
    return order[places]


def _read_boxes(annotations: list[dict], path: Path) -> np.ndarray:
    """Return the boxes (M, 4) float64 as xyxy; the files have x, y, width, height."""
    column = _column(annotations, "annotations", "bbox", path)
    bad = np.array([not _is_box(box) for box in column], dtype=bool)
    _refuse(annotations, bad, path, "bbox", "it must be four numbers x, y, width, height")
    boxes = np.array(column, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _refuse(annotations: list[dict], bad: np.ndarray, path: Path, key: str, rule: str) -> None:
    """Name the first annotation that breaks a rule."""
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        entry, value = _entry(annotations, "annotations", index), annotations[index][key]
        raise InputError(f"{path}: {entry} has {key!r} {value!r}, but {rule} ({int(bad.sum())} such annotations); {EXPORT_AGAIN}")


def _short(values: list) -> str:
    """Show the first of many values."""
    shown = ", ".join(str(value) for value in values[:8])
    return f"{shown}, ... ({len(values)})" if len(values) > 8 else shown
