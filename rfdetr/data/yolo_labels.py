"""The text of YOLO label files into arrays: one line an object, "class cx cy w h" or "class x1 y1 x2 y2 x3 y3 ...".

Numbers are fractions of the picture. Lines that cannot be used become findings and are left out.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from rfdetr.data.findings import Findings, Kind

ROUNDING = 1e-5  # a number so little outside of 0..1 is not worth a word
FAR_OUTSIDE = 2.0  # numbers above this, or below 1 - this, are no fractions but probably pixels

_SHAPES = "a line is 'class cx cy w h' or 'class x1 y1 x2 y2 x3 y3 ...'; correct the files, or export the data set again"
KINDS = {
    "label_bom": Kind("info", "files", "label files that begin with a byte order mark, which is ignored", "nothing to do"),
    "label_crlf": Kind("info", "files", "label files with Windows line ends, which are read like others", "nothing to do"),
    "label_empty_line": Kind("info", "files", "empty lines in label files, which are ignored", "nothing to do"),
    "label_comma": Kind("error", "boxes", "label lines with commas",
                        "numbers need decimal points (0.5, not 0,5) and spaces between them; export the data set again"),
    "label_fields": Kind("error", "boxes", "label lines with a wrong number of fields", _SHAPES),
    "label_not_a_number": Kind("error", "boxes", "label lines with something that is not a number", _SHAPES),
    "class_not_whole": Kind("error", "classes", "label lines whose class id is not a whole number", _SHAPES),
    "class_out_of_range": Kind("error", "classes", "label lines whose class id is not among the names of data.yaml",
                               "add the missing names to data.yaml, or correct the files; ids count from 0"),
    "pixel_coordinates": Kind("error", "boxes", "label lines with numbers far outside of 0..1",
                              "they must be fractions of the picture's width and height, not pixels; divide them"),
    "outside_picture": Kind("warning", "boxes", "label lines with numbers outside of 0..1, cut at the edge of the picture",
                            "correct them if more than the edge is meant"),
}


class LabelFile(NamedTuple):
    """One label file that was read."""

    image_index: int
    name: str  # for messages
    content: bytes


class Labels(NamedTuple):
    """M objects; coordinates are fractions of their picture."""

    image_indices: np.ndarray  # (M,) int64
    class_ids: np.ndarray  # (M,) int64
    boxes: np.ndarray  # (M, 4) float64 xyxy; the surrounding box of a polygon
    areas: np.ndarray  # (M,) float64 of polygons, NaN for boxes
    polygons: list[np.ndarray | None]  # M arrays of points (n, 2), None for boxes


class _Line(NamedTuple):
    file: LabelFile
    number: int  # from 1
    fields: list[str]

    def __str__(self) -> str:
        text = " ".join(self.fields)
        return f"{self.file.name}:{self.number}: {text[:60]}{'...' if len(text) > 60 else ''}"


def parse_labels(files: Iterable[LabelFile], class_ids: Iterable[int], findings: Findings) -> Labels:
    """Read label files.

    Args:
        class_ids: all that the data set has.
        findings: gets what is wrong with the files and their lines.
    """
    examples: dict[str, list] = defaultdict(list)
    lines = [line for file in files for line in _usable_lines(file, examples)]
    lines, values = _numbers(lines, examples)
    lengths = np.array([len(line.fields) for line in lines], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    bad = _bad_rows(values, starts, np.array(list(class_ids)))
    for name, rows in bad.items():
        examples[name] += [lines[row] for row in np.flatnonzero(rows)]
    for name, found in examples.items():
        findings.add(name, KINDS[name], [str(example) for example in found[:8]], count=len(found))
    kept = ~np.any([rows for name, rows in bad.items() if KINDS[name].severity == "error"], axis=0)
    image_indices = np.array([line.file.image_index for line in lines], dtype=np.int64)
    return _shapes(values, starts[kept], lengths[kept], image_indices[kept])


def _usable_lines(file: LabelFile, examples: dict[str, list]) -> Iterable[_Line]:
    """Give the lines that have a possible number of fields."""
    text = file.content.decode("utf-8", errors="replace")
    if text.startswith("\ufeff"):
        examples["label_bom"].append(file.name)
        text = text[1:]
    if "\r" in text:
        examples["label_crlf"].append(file.name)
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    for number, text_line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        line = _Line(file, number, text_line.split())
        count = len(line.fields)
        if not count:
            examples["label_empty_line"].append(f"{file.name}:{number}")
        elif "," in text_line:
            examples["label_comma"].append(line)
        elif count != 5 and (count < 7 or count % 2 == 0):
            examples["label_fields"].append(line)
        else:
            yield line


def _numbers(lines: list[_Line], examples: dict[str, list]) -> tuple[list[_Line], np.ndarray]:
    """Return the lines that hold finite numbers only, and all their numbers in one array."""
    try:
        values = np.array([field for line in lines for field in line.fields], dtype=np.float64)
        if np.isfinite(values).all():
            return lines, values
    except ValueError:
        pass
    good = [line for line in lines if all(map(_is_finite, line.fields))]
    examples["label_not_a_number"] += [line for line in lines if not all(map(_is_finite, line.fields))]
    return good, np.array([field for line in good for field in line.fields], dtype=np.float64)


def _is_finite(field: str) -> bool:
    try:
        return bool(np.isfinite(float(field)))
    except ValueError:
        return False


def _bad_rows(values: np.ndarray, starts: np.ndarray, class_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Tell for each kind of dirt which rows (M,) bool have it."""
    classes = values[starts]
    coordinates = values.copy()
    coordinates[starts] = 0.5
    is_empty = not len(starts)  # which reduceat does not take
    low, high = (classes, classes) if is_empty else (np.minimum.reduceat(coordinates, starts),
                                                     np.maximum.reduceat(coordinates, starts))
    is_whole = classes == np.floor(classes)
    is_far = (high > FAR_OUTSIDE) | (low < 1 - FAR_OUTSIDE)
    return {
        "class_not_whole": ~is_whole,
        "class_out_of_range": is_whole & ~np.isin(classes, class_ids),
        "pixel_coordinates": is_far,
        "outside_picture": ~is_far & ((high > 1 + ROUNDING) | (low < -ROUNDING)),
    }


def _shapes(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, image_indices: np.ndarray) -> Labels:
    """Make boxes of the rows of 5 numbers and boxes with polygons of the longer ones."""
    boxes, areas = np.empty((len(starts), 4)), np.full(len(starts), np.nan)
    is_box = lengths == 5
    centre_x, centre_y, width, height = values[starts[is_box][:, None] + np.arange(1, 5)].T
    boxes[is_box] = np.stack([centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2], axis=1)
    polygons: list[np.ndarray | None] = [None] * len(starts)
    for row in np.flatnonzero(~is_box):
        points = values[starts[row] + 1 : starts[row] + lengths[row]].reshape(-1, 2)
        boxes[row] = *points.min(axis=0), *points.max(axis=0)
        polygons[row] = points.clip(0, 1)
        areas[row] = _area(polygons[row])
    return Labels(image_indices, values[starts].astype(np.int64), boxes, areas, polygons)


def _area(points: np.ndarray) -> float:
    """Area of a polygon (n, 2) by the shoelace formula."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
