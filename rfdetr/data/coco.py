"""Read COCO annotation files (also Roboflow's exports) into arrays; entries that are wrong become findings and are left out."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.data.annotations import RawSplit
from rfdetr.data.findings import MAX_EXAMPLES, Findings, Kind
from rfdetr.data.label_map import Category
from rfdetr.data.segmentations import encode
from rfdetr.errors import InputError

EXPORT_AGAIN = "correct the file, or export the data set again"
KINDS = {
    "image_entry": Kind("error", "files", "image entries without a usable id, file name, width or height", EXPORT_AGAIN),
    "image_id_twice": Kind("error", "files", "images with an id that an image before them has", EXPORT_AGAIN),
    "category_entry": Kind("error", "classes", "categories without a usable id or name", EXPORT_AGAIN),
    "category_id_twice": Kind("error", "classes", "categories with an id that a category before them has", EXPORT_AGAIN),
    "unknown_category": Kind("error", "classes", "annotations of a category that the file does not list", EXPORT_AGAIN),
    "unknown_image": Kind("error", "boxes", "annotations on an image that the file does not list", EXPORT_AGAIN),
    "bad_box": Kind("error", "boxes", "annotations whose 'bbox' is not four numbers x, y, width, height", EXPORT_AGAIN),
}


def read_coco(
    annotation_file: Path, image_root: Path, *, findings: Findings, with_masks: bool = False,
    choose: Callable[[dict], dict] | None = None,
) -> RawSplit:
    """Read one annotation file.

    Args:
        image_root: folder that the file's `file_name` entries are relative to.
        findings: gets what is wrong with single entries, which are left out.
        with_masks: keep the segmentations, encoded.
        choose: returns the part of the file's content that is wanted.

    Raises:
        InputError: the file as a whole is missing or not what it should be.
    """
    content = parse_json(_read_file(annotation_file), annotation_file)
    content = content if choose is None else choose(content)
    return split_from_content(content, annotation_file, image_root, findings=findings, with_masks=with_masks)


def split_from_content(
    content: dict, source: Path | str, image_root: Path | str, *, findings: Findings, with_masks: bool = False
) -> RawSplit:
    """Make a split of what an annotation file holds; `source` is what messages name, the rest is as in `read_coco`."""
    images, annotations, categories = (_rows(content, name, source) for name in ("images", "annotations", "categories"))
    for name, rows in (("images", images), ("categories", categories)):
        if not rows:
            raise InputError(f"{source}: lists no {name}; {EXPORT_AGAIN}")
    drop = _Drop(findings)
    listed_ids = _integers(images, "id")[0]
    images, image_ids = _drop_bad_images(images, drop)
    found_categories = _read_categories(categories, drop)
    annotations = _drop_bad_annotations(annotations, listed_ids, [category.id for category in found_categories], drop)
    wanted = _integers(annotations, "image_id")[0]
    known = np.isin(wanted, image_ids)  # the others are on image entries that were dropped, which is reported already
    annotations, wanted = [row for row, is_known in zip(annotations, known) if is_known], wanted[known]
    order = np.argsort(image_ids, kind="stable")
    return RawSplit(
        source=source, image_root=image_root, image_ids=image_ids, file_names=[image["file_name"] for image in images],
        image_sizes=np.stack([_integers(images, side)[0] for side in ("height", "width")], axis=1), categories=found_categories,
        category_ids=_integers(annotations, "category_id")[0], image_indices=order[np.searchsorted(image_ids[order], wanted)],
        boxes=_boxes(annotations),
        areas=np.array([_number_or_nan(row.get("area")) for row in annotations], dtype=np.float64),
        is_crowd=np.array([bool(row.get("iscrowd", 0)) for row in annotations], dtype=bool),
        segmentations=[encode(row.get("segmentation")) for row in annotations] if with_masks else None,
    )


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such annotation file; check the folder of the data set and its format") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None


def parse_json(data: bytes, path: Path | str) -> dict:
    """Read JSON whose outermost value is an object; `path` is what messages name."""
    try:
        content = json.loads(data)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}: not valid JSON at {place} ({error.msg}); {EXPORT_AGAIN}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid JSON, byte {error.start} is not UTF-8; {EXPORT_AGAIN}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, but COCO annotations are an object with the lists images, "
                         f"annotations and categories; {EXPORT_AGAIN}")
    return content


def _rows(content: dict, name: str, path: Path | str) -> list[dict]:
    """Return one of the file's lists of objects."""
    if name not in content:
        raise InputError(f"{path}: the list {name!r} is missing (found: {_short(list(content))}); {EXPORT_AGAIN}")
    rows = content[name]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: {name!r} must be a list of objects; {EXPORT_AGAIN}")
    return rows


class _Drop:
    """Leaves bad rows out, with a finding that quotes each."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings

    def __call__(self, rows: list[dict], bad: np.ndarray, kind: str, name: str, describe: Callable[[dict], str]) -> list[dict]:
        """Return the rows that are not `bad` (n,) bool; `name` is that of the file's list, `describe` says what is wrong."""
        if not bad.any():
            return rows
        places = np.flatnonzero(bad)
        examples = [f"{_entry(rows[place], int(place), name)} {describe(rows[place])}" for place in places[:MAX_EXAMPLES]]
        self._findings.add(kind, KINDS[kind], examples, count=len(places))
        return [row for row, is_bad in zip(rows, bad) if not is_bad]


def _drop_bad_images(images: list[dict], drop: _Drop) -> tuple[list[dict], np.ndarray]:
    """Return the usable image entries and their ids (N,) int64."""
    whole = {key: _integers(images, key) for key in ("id", "width", "height")}
    bad = ~np.all([valid for _, valid in whole.values()], axis=0)
    bad |= (whole["width"][0] < 1) | (whole["height"][0] < 1) | [not _is_file_name(row.get("file_name")) for row in images]
    images = drop(images, bad, "image_entry", "images", _describe_image)
    image_ids = _integers(images, "id")[0]
    again = _repeats(image_ids)
    images = drop(images, again, "image_id_twice", "images", lambda row: f"({row['file_name']})")
    return images, image_ids[~again]


def _describe_image(row: dict) -> str:
    wrong = [key for key in ("id", "width", "height") if not _is_integer(row.get(key)) or key != "id" and row[key] < 1]
    wrong += ["file_name"] if not _is_file_name(row.get("file_name")) else []
    return " and ".join(f"has {key!r} {row[key]!r}" if key in row else f"has no {key!r}" for key in wrong)


def _read_categories(rows: list[dict], drop: _Drop) -> list[Category]:
    bad = ~_integers(rows, "id")[1] | ["name" not in row for row in rows]
    rows = drop(rows, bad, "category_entry", "categories", lambda row: f"is {str(row)[:80]}")
    rows = drop(rows, _repeats(_integers(rows, "id")[0]), "category_id_twice", "categories", lambda row: f"({row['name']!r})")
    return [Category(int(row["id"]), str(row["name"]), row.get("supercategory")) for row in rows]


def _drop_bad_annotations(rows: list[dict], image_ids: np.ndarray, category_ids: list[int], drop: _Drop) -> list[dict]:
    for kind, key, known in (("unknown_category", "category_id", category_ids), ("unknown_image", "image_id", image_ids)):
        values, valid = _integers(rows, key)
        rows = drop(rows, ~(valid & np.isin(values, known)), kind, "annotations", partial(_quote, key=key))
    bad = np.array([not _is_box(row.get("bbox")) for row in rows], dtype=bool)
    return drop(rows, bad, "bad_box", "annotations", partial(_quote, key="bbox"))


def _boxes(annotations: list[dict]) -> np.ndarray:
    """Return the boxes (M, 4) float64 as xyxy; the files have x, y, width, height."""
    boxes = np.array([row["bbox"] for row in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _integers(rows: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a column (n,) int64, and which of its values (n,) bool are whole numbers; the others read 0."""
    column = [row.get(key) for row in rows]
    try:
        return np.array(column, dtype=np.int64).reshape(len(rows)), np.ones(len(rows), dtype=bool)
    except (TypeError, ValueError, OverflowError):
        valid = np.array([_is_integer(value) for value in column], dtype=bool)
        return np.array([value if ok else 0 for value, ok in zip(column, valid)], dtype=np.int64), valid


def _repeats(values: np.ndarray) -> np.ndarray:
    """Tell which values (n,) have been there before."""
    again = np.ones(len(values), dtype=bool)
    again[np.unique(values, return_index=True)[1]] = False
    return again


def _is_integer(value: Any) -> bool:
    try:
        return np.array(value, dtype=np.int64).ndim == 0
    except (TypeError, ValueError, OverflowError):
        return False


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(number, (int, float)) for number in value)


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _number_or_nan(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else np.nan


def _entry(row: dict, place: int, name: str) -> str:
    """Name an entry in a message by its id, or its place where it has none."""
    return f"entry {place} of {name}" if "id" not in row else f"the entry of {name} with id {row['id']}"


def _quote(row: dict, key: str) -> str:
    return f"has {key!r} {str(row[key])[:80]}" if key in row else f"has no {key!r}"


def _short(values: list) -> str:
    """Show the first of many values."""
    shown = ", ".join(str(value) for value in values[:8])
    return f"{shown}, ... ({len(values)})" if len(values) > 8 else shown
