"""Read COCO annotation files (also Roboflow's exports) into arrays; entries that are wrong become findings and are left out."""

import os
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from rfdetr.data.annotations import RawSplit
from rfdetr.data.box_reading import KINDS as BOX_KINDS
from rfdetr.data.box_reading import read_boxes
from rfdetr.data.findings import MAX_EXAMPLES, Findings, Kind
from rfdetr.data.json_file import EXPORT_AGAIN, LISTS, parse_json
from rfdetr.data.label_map import Category
from rfdetr.data.mask_reading import KINDS as MASK_KINDS
from rfdetr.data.mask_reading import polygon_extents, read_masks
from rfdetr.errors import InputError
from rfdetr.values import flags, numbers, rows_of_numbers, shown, whole_numbers

ENTRY_OF = {"images": "image", "annotations": "annotation", "categories": "category"}
MAX_SIDE = 1_000_000  # pixels of an image; with MAX_PIXELS it keeps mistakes from taking all memory
MAX_PIXELS = 2**31 - 1  # that run lengths can count
MAX_AREA = 1e30  # square pixels; beyond it single precision ends
KINDS = {
    "not_an_entry": Kind("error", "files", "entries that are not objects {...}", EXPORT_AGAIN, "drops"),
    "image_entry": Kind("error", "files", "image entries without a usable id, file name, width or height", EXPORT_AGAIN, "drops"),
    "image_id_twice": Kind("error", "files", "images with an id that an image before them has", EXPORT_AGAIN, "drops"),
    "category_entry": Kind("error", "classes", "categories without a usable id", EXPORT_AGAIN, "drops"),
    "category_name": Kind("error", "classes", "categories whose name is not a text, called class_ID instead", EXPORT_AGAIN,
                          "repairs"),
    "category_id_twice": Kind("error", "classes", "categories with an id that a category before them has", EXPORT_AGAIN, "drops"),
    "unknown_category": Kind("error", "classes", "annotations of a category that the file does not list", EXPORT_AGAIN, "drops"),
    "unknown_image": Kind("error", "boxes", "annotations on an image that the file does not list", EXPORT_AGAIN, "drops"),
    "bad_box": Kind("error", "boxes", "annotations whose 'bbox' is not four numbers x, y, width, height", EXPORT_AGAIN, "drops"),
    "bad_crowd": Kind("error", "boxes", "annotations whose 'iscrowd' is neither 0 nor 1, taken for 0",
                      f"1 is for regions of many objects that evaluation ignores; {EXPORT_AGAIN}", "repairs"),
    "bad_area": Kind("warning", "boxes", "annotations whose 'area' is no possible number, taken from the box instead",
                     "evaluation sorts objects into small, medium and large by it", "repairs"),
}
_ALL_KINDS = {**KINDS, **BOX_KINDS, **MASK_KINDS}


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
    try:
        with open(annotation_file, "rb") as file:
            content = parse_json(file, annotation_file)
    except FileNotFoundError:
        raise InputError(f"{annotation_file}: there is no such annotation file; check the folder of the data set and its format"
                         ) from None
    except OSError as error:
        raise InputError(f"{annotation_file}: cannot be read ({error.strerror or error}); check its permissions") from None
    content = content if choose is None else choose(content)
    return split_from_content(content, annotation_file, image_root, findings=findings, with_masks=with_masks)


def split_from_content(
    content: dict, source: Path | str, image_root: Path | str, *, findings: Findings, with_masks: bool = False
) -> RawSplit:
    """Make a split of what an annotation file holds; `source` is what messages name, the rest is as in `read_coco`."""
    images, annotations, categories = (_rows(content, name, source, findings) for name in LISTS)
    listed_ids = whole_numbers([image.get("id") for image in images])[0]
    images, image_ids, image_sizes = _read_images(_Entries("images", images, findings), source)
    categories = _read_categories(_Entries("categories", categories, findings), source)
    entries, image_indices, category_ids = _place(_Entries("annotations", annotations, findings), listed_ids, image_ids,
                                                  [category.id for category in categories])
    numbers_of_boxes, valid = rows_of_numbers(entries.column("bbox"), 4)
    entries.note("bad_box", ~valid, entries.quote("bbox"))
    entries, image_indices, category_ids = entries.only(valid), image_indices[valid], category_ids[valid]
    sizes = image_sizes[image_indices]
    crowds, is_flag = flags(entries.column("iscrowd"))
    entries.note("bad_crowd", ~is_flag, entries.quote("iscrowd"))
    boxes, areas = read_boxes(numbers_of_boxes[valid], _read_areas(entries), sizes,
                              lambda rows: polygon_extents([entries.rows[row].get("segmentation") for row in rows.tolist()]),
                              lambda kind, rows, detail: entries.note(kind, rows, entries.quote("bbox", detail)))
    masks, kept = _read_masks(entries, sizes) if with_masks else (None, np.ones(len(boxes), dtype=bool))
    return RawSplit(
        source=source, image_root=image_root, image_ids=image_ids, file_names=[image["file_name"] for image in images],
        image_sizes=image_sizes, categories=categories, category_ids=category_ids, image_indices=image_indices, boxes=boxes,
        areas=areas, is_crowd=crowds, segmentations=masks,
    ).with_objects(kept)


def _rows(content: dict, name: str, source: Path | str, findings: Findings) -> list[dict]:
    """Return one of the file's lists of objects."""
    if name not in content:
        raise InputError(f"{source}: the list {name!r} is missing (found: {shown(list(content))}); {EXPORT_AGAIN}")
    rows = content[name]
    if not isinstance(rows, list):
        raise InputError(f"{source}: {name!r} must be a list of objects; {EXPORT_AGAIN}")
    wrong = [place for place, row in enumerate(rows) if not isinstance(row, dict)]
    findings.add("not_an_entry", KINDS["not_an_entry"],
                 [f"entry {place} of {name} is {shown(rows[place])}" for place in wrong[:MAX_EXAMPLES]], count=len(wrong))
    if len(rows) == len(wrong) and name != "annotations":
        what = f"holds {shown(rows[0])} and the like, no objects {{...}}, among its" if rows else "lists no"
        raise InputError(f"{source}: {what} {name}; {EXPORT_AGAIN}")
    return [row for row in rows if isinstance(row, dict)] if wrong else rows


class _Entries:
    """One of the file's lists, with what is wrong with its entries."""

    def __init__(self, name: str, rows: list[dict], findings: Findings) -> None:
        self.name, self.rows, self._findings = name, rows, findings

    def column(self, key: str) -> list:
        return [row.get(key) for row in self.rows]

    def only(self, kept: np.ndarray) -> "_Entries":
        """Return the entries that are `kept` (n,) bool."""
        return self if kept.all() else _Entries(self.name, list(compress(self.rows, kept)), self._findings)

    def note(self, kind: str, bad: np.ndarray, describe: Callable[[int], str]) -> None:
        """Report the entries that are `bad` (n,) bool; `describe` says what is wrong with one."""
        places = np.flatnonzero(bad).tolist()
        examples = [f"{self._title(place)} {describe(place)}" for place in places[:MAX_EXAMPLES]]
        self._findings.add(kind, _ALL_KINDS[kind], examples, count=len(places))

    def quote(self, key: str, detail: Callable[[int], str] = lambda place: "") -> Callable[[int], str]:
        """Return a description of entries: the value of `key`, and a detail."""
        def describe(place: int) -> str:
            row = self.rows[place]
            return (f"has {key!r} {shown(row[key])} {detail(place)}" if key in row else f"has no {key!r}").strip()
        return describe

    def _title(self, place: int) -> str:
        """Name an entry by its id, or its place where it has none."""
        row = self.rows[place]
        return f"{ENTRY_OF[self.name]} with id {shown(row['id'])}" if "id" in row else f"entry {place} of {self.name}"


def _read_images(entries: _Entries, source: Path | str) -> tuple[list[dict], np.ndarray, np.ndarray]:
    """Return the usable image entries, their ids (N,) and sizes (N, 2) h, w."""
    (ids, has_id), (heights, has_height), (widths, has_width) = (
        whole_numbers(entries.column(key)) for key in ("id", "height", "width"))
    sizes = np.stack([heights, widths], axis=1)
    for has_side, sides in ((has_height, heights), (has_width, widths)):
        has_side &= (sides >= 1) & (sides <= MAX_SIDE)
    has_size = has_height & has_width & (sizes.clip(0, MAX_SIDE).prod(axis=1) <= MAX_PIXELS)
    has_name = np.array([_is_text(name) for name in entries.column("file_name")], dtype=bool)

    def describe(place: int) -> str:
        checked = {"id": has_id, "width": has_width, "height": has_height, "file_name": has_name}
        wrong = [key for key, is_good in checked.items() if not is_good[place]]
        wrong = wrong or ["width", "height"]  # both together are too large
        return " and ".join(entries.quote(key)(place) for key in wrong)

    usable = has_id & has_size & has_name
    entries.note("image_entry", ~usable, describe)
    if not usable.any():
        raise InputError(f"{source}: none of its images can be used; the first {describe(0)}; {EXPORT_AGAIN}")
    entries, ids, sizes = entries.only(usable), ids[usable], sizes[usable]
    again = _repeats(ids)
    entries.note("image_id_twice", again, lambda place: f"({entries.rows[place]['file_name']})")
    return entries.only(~again).rows, ids[~again], sizes[~again]


def _read_categories(entries: _Entries, source: Path | str) -> list[Category]:
    ids, has_id = whole_numbers(entries.column("id"))
    entries.note("category_entry", ~has_id, lambda place: f"is {shown(entries.rows[place])}")
    if not has_id.any():
        raise InputError(f"{source}: none of its categories has an id that is a whole number; {EXPORT_AGAIN}")
    entries, ids = entries.only(has_id), ids[has_id]
    again = _repeats(ids)
    entries.note("category_id_twice", again, lambda place: f"({shown(entries.rows[place].get('name'))})")
    entries, ids = entries.only(~again), ids[~again].tolist()
    names = [str(name) if type(name) is int else name for name in entries.column("name")]
    has_name = np.array([name == "" or _is_text(name) for name in names], dtype=bool)
    entries.note("category_name", ~has_name, entries.quote("name"))
    parents = [parent if _is_text(parent) else None for parent in entries.column("supercategory")]
    return [Category(id_, name if ok else f"class_{id_}", parent) for id_, name, ok, parent in zip(ids, names, has_name, parents)]


def _place(
    entries: _Entries, listed_ids: np.ndarray, image_ids: np.ndarray, category_ids: list[int]
) -> tuple[_Entries, np.ndarray, np.ndarray]:
    """Return the annotations whose image and category there are, which image (M,) each is on, and its category id (M,)."""
    for kind, key, known in (("unknown_category", "category_id", category_ids), ("unknown_image", "image_id", listed_ids)):
        values, valid = whole_numbers(entries.column(key))
        valid &= np.isin(values, known)
        entries.note(kind, ~valid, entries.quote(key))
        entries = entries.only(valid)
    wanted = whole_numbers(entries.column("image_id"))[0]
    is_usable = np.isin(wanted, image_ids)  # the others are on image entries that are reported already
    entries, wanted = entries.only(is_usable), wanted[is_usable]
    order = np.argsort(image_ids, kind="stable")
    return entries, order[np.searchsorted(image_ids[order], wanted)], whole_numbers(entries.column("category_id"))[0]


def _read_areas(entries: _Entries) -> np.ndarray:
    """Return the areas (M,) float64, NaN where there is none that can be."""
    column = entries.column("area")
    areas, _ = numbers(column)
    given = np.array([value is not None for value in column], dtype=bool)
    possible = (areas >= 0) & (areas <= MAX_AREA)  # False for NaN
    entries.note("bad_area", given & ~possible, entries.quote("area"))
    return np.where(possible, areas, np.nan)


def _read_masks(entries: _Entries, sizes: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Return the encoded masks, and which (M,) bool can be used; the entries lose theirs, since both together are much."""
    values = entries.column("segmentation")
    for row in entries.rows:
        row["segmentation"] = None
    masks, found = read_masks(values, sizes)
    for kind, rows in found.items():
        entries.note(kind, np.isin(np.arange(len(masks)), list(rows)), rows.__getitem__)
    kept = np.ones(len(masks), dtype=bool)
    kept[list(found["bad_mask"])] = False
    return masks, kept


def _repeats(values: np.ndarray) -> np.ndarray:
    """Tell which values (n,) have been there before."""
    again = np.ones(len(values), dtype=bool)
    again[np.unique(values, return_index=True)[1]] = False
    return again


def _is_text(value: Any) -> bool:
    """Tell whether this is a text that files and terminals take."""
    try:
        return isinstance(value, str) and value != "" and "\0" not in value and os.fsencode(value) != b""
    except UnicodeEncodeError:
        return False
