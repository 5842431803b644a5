"""The text of YOLO label files into arrays: one line an object.

A line is a box "class cx cy w h", a polygon "class x1 y1 x2 y2 x3 y3 ..." (also the four corners of a turned box), or a box with
key points behind it, which data.yaml must announce (`kpt_shape`): by its length alone such a line may be a polygon as well. One
number more than a box is a confidence or a track. Boxes and polygons may stand side by side. What lines of a doubtful length are,
all lines of a split decide together (`join`). Numbers are fractions of the picture. Lines that cannot be used become findings and
are left out.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from rfdetr.data.findings import MAX_EXAMPLES, Findings, Kind

ROUNDING = 1e-5  # a number so little outside of 0..1 is not worth a word
FAR_OUTSIDE = 2.0  # numbers above this, or below 1 - this, are no fractions but probably pixels
BOX_FIELDS = 5
SUSPECT = 1 / 3  # share of lines like a box with key points that no set of polygons reaches
APART = 0.7  # extents of some points that others lie away from them
ENOUGH = 10  # lines of one length, for them to be judged by themselves
MAX_BYTES = 2**24  # of a label file; 400,000 boxes

_SHAPES = "a line is 'class cx cy w h' or 'class x1 y1 x2 y2 x3 y3 ...' in numbers; correct the files, or export again"
_KEY_POINTS = ("for key points, write kpt_shape: [number of key points, 2 or 3] into data.yaml; cut other columns off; "
               "where lines are polygons, write task: segment")
KINDS = {
    "label_unreadable": Kind("error", "files", "label files that cannot be read", "replace them", "drops"),
    "label_not_text": Kind("error", "files", "label files that are not UTF-8 text",
                           "save them as UTF-8, or export the data set again", "drops"),
    "label_huge": Kind("error", "files", f"label files of more than {MAX_BYTES >> 20} MB", "these are no labels; replace them",
                       "drops"),
    "label_bom": Kind("info", "files", "label files that begin with a byte order mark, which is ignored", "nothing to do"),
    "label_crlf": Kind("info", "files", "label files with Windows line ends, which are read like others", "nothing to do"),
    "label_empty_line": Kind("info", "files", "empty lines in label files, which are ignored", "nothing to do"),
    "label_comma": Kind("error", "boxes", "label lines with commas",
                        "numbers need decimal points (0.5, not 0,5) and spaces between them; export the data set again", "drops"),
    "label_fields": Kind("error", "boxes", "label lines with a wrong number of fields", f"{_SHAPES}; {_KEY_POINTS}", "drops"),
    "key_point_fields": Kind("error", "boxes", "label lines with another number of fields than kpt_shape asks for",
                             "a line is 'class cx cy w h' and all key points, or the box alone; correct kpt_shape in data.yaml, "
                             "or take it out where lines are polygons", "drops"),
    "label_suspect": Kind("error", "boxes", "label lines that may be polygons, but look like a box with key points or columns",
                          _KEY_POINTS, "drops"),
    "label_angle": Kind("error", "boxes", "label lines with a number after the box that is no confidence and no track",
                        "for turned boxes, give the four corners; cut other columns off", "drops"),
    "label_extra": Kind("warning", "boxes", "label lines with a number after the box, ignored as a confidence or a track",
                        "make sure that these are labels, not what a model found", "repairs"),
    "label_padding": Kind("warning", "boxes", "polygons filled up with zeros, which are left out",
                          "nothing to do here; other programs may take them for corners", "repairs"),
    "label_not_a_number": Kind("error", "boxes", "label lines with something that is not a number", _SHAPES, "drops"),
    "class_not_whole": Kind("error", "classes", "label lines whose class id is not a whole number", _SHAPES, "drops"),
    "class_out_of_range": Kind("error", "classes", "label lines whose class id is not among the names of data.yaml",
                               "add the missing names to data.yaml, or correct the files; ids count from 0", "drops"),
    "pixel_coordinates": Kind("error", "boxes", "label lines with numbers far outside of 0..1",
                              "they must be fractions of the picture's width and height, not pixels; divide them", "drops"),
    "outside_picture": Kind("warning", "boxes", "label lines with numbers outside of 0..1, cut at the edge of the picture",
                            "correct them if more than the edge is meant", "repairs"),
}


class LineForm(NamedTuple):
    """What data.yaml says of the lines; nothing, usually."""

    key_point_fields: int | None = None  # fields of a line with key points
    is_polygon: bool = False  # lines longer than a box are polygons for certain


PLAIN = LineForm()


class LabelFile(NamedTuple):
    """One label file that was read."""

    image_index: int
    name: str  # for messages
    content: bytes | str  # or why it cannot be used: the name of a kind


class Labels(NamedTuple):
    """M objects; coordinates are fractions of their picture."""

    image_indices: np.ndarray  # (M,) int64
    class_ids: np.ndarray  # (M,) int64
    boxes: np.ndarray  # (M, 4) float64 xyxy; the surrounding box of a polygon
    areas: np.ndarray  # (M,) float64 of polygons, NaN for boxes
    lengths: np.ndarray  # (M,) int64 fields of the line
    is_odd: np.ndarray  # (M,) bool, unlike other lines of its length: a point for `join`
    polygons: list[np.ndarray | None]  # M arrays of points (n, 2), None for boxes
    examples: dict[int, list[str]]  # odd lines of each length, or lines where none is odd


class _Line(NamedTuple):
    file: LabelFile
    number: int  # from 1
    fields: list[str]

    def __str__(self) -> str:
        text = " ".join(self.fields)
        return f"{self.file.name}:{self.number}: {text[:60]}{'...' if len(text) > 60 else ''}"


def parse_labels(files: Iterable[LabelFile], class_ids: Iterable[int], findings: Findings, form: LineForm = PLAIN) -> Labels:
    """Read some label files of a split; `join` then decides about all of them.

    Args:
        class_ids: all that the data set has.
        findings: gets what is wrong with the files and their lines.
    """
    examples: dict[str, list] = defaultdict(list)
    lines = [line for file in files for line in _usable_lines(file, form, examples)]
    lines, values = _numbers(lines, examples)
    lengths = np.array([len(line.fields) for line in lines], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    has_columns = _has_columns(values, starts, lengths)
    is_polygon = (lengths > BOX_FIELDS + 1) & (lengths != form.key_point_fields) & (form.is_polygon | ~has_columns)
    bad = _bad_rows(values, starts, np.where(is_polygon, lengths, BOX_FIELDS), np.array(list(class_ids)))
    for name, rows in bad.items():
        examples[name] += [lines[row] for row in np.flatnonzero(rows)]
    for name, found in examples.items():
        findings.add(name, KINDS[name], [str(example) for example in found[:MAX_EXAMPLES]], count=len(found))
    kept = np.flatnonzero(~np.any([rows for name, rows in bad.items() if KINDS[name].severity == "error"], axis=0))
    labels, padded = _shapes(values, starts[kept], lengths[kept], is_polygon[kept])
    if len(padded):
        findings.add("label_padding", KINDS["label_padding"], [str(lines[row]) for row in kept[padded[:MAX_EXAMPLES]]],
                     count=len(padded))
    labels = labels._replace(image_indices=np.array([lines[row].file.image_index for row in kept], dtype=np.int64))
    if form != PLAIN:  # then longer lines are no question
        labels.is_odd[:] &= labels.lengths == BOX_FIELDS + 1
    for row in np.flatnonzero(labels.is_odd | (labels.lengths == BOX_FIELDS + 1)):
        known = labels.examples.setdefault(int(labels.lengths[row]), [])
        if len(known) < MAX_EXAMPLES:
            known.append(str(lines[kept[row]]))
    return labels


def join(parts: list[Labels], findings: Findings) -> tuple[Labels, np.ndarray]:
    """Put the labels of a split together, and decide what its lines are.

    Returns:
        the labels that can be used, without their polygons; and which (M,) bool of all labels these are.
    """
    columns = zip(*(part[:6] for part in parts))
    whole = Labels(*(np.concatenate(column) for column in columns), polygons=[], examples={})
    is_extra = whole.lengths == BOX_FIELDS + 1
    refused = {name: lengths for name, lengths in (("label_angle", [BOX_FIELDS + 1] if (is_extra & whole.is_odd).any() else []),
                                                   ("label_suspect", _suspect_lengths(whole)))}
    told = refused if refused["label_angle"] else {**refused, "label_extra": [BOX_FIELDS + 1]}
    for name, lengths in told.items():
        examples = [text for part in parts for length in lengths for text in part.examples.get(length, [])]
        findings.add(name, KINDS[name], examples[:MAX_EXAMPLES], count=int(np.isin(whole.lengths, lengths).sum()))
    kept = ~np.isin(whole.lengths, [length for lengths in refused.values() for length in lengths])
    if not kept.all():
        whole = whole._replace(**{name: column[kept] for name, column in zip(Labels._fields[:6], whole[:6])})
    return whole, kept


def _suspect_lengths(labels: Labels) -> list[int]:
    """Return the numbers of fields that lines with key points have here, and not those of polygons."""
    rows = labels.lengths > BOX_FIELDS + 1
    lengths, places = np.unique(labels.lengths[rows], return_inverse=True)
    counts = np.bincount(places, minlength=len(lengths))
    odd = np.bincount(places, weights=labels.is_odd[rows], minlength=len(lengths))
    judged = (counts >= ENOUGH) & (counts >= 0.1 * counts.sum())
    if odd.sum() >= SUSPECT * counts.sum():
        judged[:] = True
    return lengths[judged & (odd >= SUSPECT * counts)].tolist()


def _usable_lines(file: LabelFile, form: LineForm, examples: dict[str, list]) -> Iterable[_Line]:
    """Give the lines that have a possible number of fields."""
    text = _text(file, examples)
    for number, text_line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        line = _Line(file, number, text_line.split())
        count = len(line.fields)
        if not count:
            examples["label_empty_line"].append(f"{file.name}:{number}")
        elif "," in text_line:
            examples["label_comma"].append(line)
        elif form.key_point_fields is not None and count not in (BOX_FIELDS, form.key_point_fields):
            examples["key_point_fields"].append(line)
        elif form.key_point_fields is None and count != BOX_FIELDS + 1 and (count < BOX_FIELDS or count % 2 == 0):
            examples["label_fields"].append(line)
        elif "_" in text_line or not text_line.isascii():  # Python would read 1_0, and digits of other scripts
            examples["label_not_a_number"].append(line)
        else:
            yield line


def _text(file: LabelFile, examples: dict[str, list]) -> str:
    """Return the text of a file with plain line ends; an empty one where it cannot be used."""
    if isinstance(file.content, str):
        examples[file.content].append(file.name)
        return ""
    try:
        text = file.content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        examples["label_not_text"].append(file.name)
        return ""
    if text.startswith("\ufeff"):
        examples["label_bom"].append(file.name)
        text = text[1:]
    if "\r" in text:
        examples["label_crlf"].append(file.name)
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


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


def _has_columns(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Tell which lines (M,) bool may be a box with a confidence and a whole number, rather than a triangle."""
    has_columns = lengths == BOX_FIELDS + 2
    confidence, number = values[starts[has_columns][:, None] + np.arange(BOX_FIELDS, BOX_FIELDS + 2)].T
    has_columns[has_columns] = (confidence >= 0) & (confidence <= 1) & (number >= 1) & (number == np.floor(number))
    return has_columns


def _bad_rows(values: np.ndarray, starts: np.ndarray, used: np.ndarray, class_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Tell for each kind of dirt which rows (M,) bool have it; of each row the first `used` (M,) fields count."""
    classes = values[starts]
    lengths = np.diff(starts, append=len(values))
    places = np.arange(len(values)) - np.repeat(starts, lengths)
    coordinates = np.where((places > 0) & (places < np.repeat(used, lengths)), values, 0.5)
    is_side = (places > 2) & np.repeat(used == BOX_FIELDS, lengths)
    coordinates[is_side] = np.abs(coordinates[is_side])  # a negative one is a box from another corner, as in other formats
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


def _shapes(
    values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, is_polygon: np.ndarray
) -> tuple[Labels, np.ndarray]:
    """Make boxes of the first five numbers of a row, or boxes with polygons of all of them; of padding, return the rows."""
    count = len(starts)
    boxes, areas = np.empty((count, 4)), np.full(count, np.nan)
    is_odd, polygons = np.zeros(count, dtype=bool), [None] * count
    boxes[~is_polygon] = _corners(values[starts[~is_polygon][:, None] + np.arange(1, BOX_FIELDS)])
    for length in np.unique(lengths[is_polygon]):
        rows = np.flatnonzero(is_polygon & (lengths == length))
        numbers = values[starts[rows][:, None] + np.arange(1, length)]
        points = numbers.reshape(len(rows), -1, 2)
        boxes[rows] = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
        is_odd[rows] = np.any([_like_key_points(numbers, dims) for dims in (2, 3)], axis=0)
        points = points.clip(0, 1)
        areas[rows] = _areas(points)
        for row, polygon in zip(rows.tolist(), points):
            polygons[row] = polygon
    padded = np.flatnonzero(is_polygon & ~is_odd & _is_padded(values, starts, lengths))
    for row in padded.tolist():
        polygons[row] = polygon = polygons[row][: 1 + np.flatnonzero(polygons[row].any(axis=1))[-1]]
        boxes[row], areas[row] = np.concatenate([polygon.min(axis=0), polygon.max(axis=0)]), _areas(polygon[None])[0]
    is_odd |= ~is_polygon & (lengths == BOX_FIELDS + 2)
    extra = values[starts[lengths == BOX_FIELDS + 1] + BOX_FIELDS]
    is_odd[lengths == BOX_FIELDS + 1] = (extra < 0) | ((extra > 1) & (extra != np.floor(extra)))
    class_ids = values[starts].astype(np.int64)
    return Labels(np.zeros(count, dtype=np.int64), class_ids, boxes, areas, lengths, is_odd, polygons, {}), padded


def _is_padded(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Tell which rows (n,) have three points and end with two at 0, 0, where a polygon has one corner at the most."""
    is_long = lengths > BOX_FIELDS + 5
    starts, lengths = np.where(is_long, starts, 0), np.where(is_long, lengths, 0)
    third = np.take(values, starts[:, None] + [5, 6], mode="clip")
    last = np.take(values, (starts + lengths)[:, None] - np.arange(1, 5), mode="clip")
    return is_long & (third != 0).any(axis=1) & (last == 0).all(axis=1)


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) from cxcywh to xyxy."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def _like_key_points(numbers: np.ndarray, dims: int) -> np.ndarray:
    """Tell which polygons (k, n) look like a box inside of the picture around key points of 2 or 3 numbers, (k,) bool.

    Also a small polygon near the middle has its later points in the "box" of its first two. It is a box if its centre is amid the
    points, where a polygon has no corner, if its size, or both, are far away from them, as no corner is, or if all points are 0.
    """
    if (numbers.shape[1] - 4) % dims:
        return np.zeros(len(numbers), dtype=bool)
    rest = numbers[:, 4:].reshape(len(numbers), -1, dims)
    points, flags = rest[..., :2], rest[..., 2:]  # a flag is 0 for "not annotated", 1 for "hidden", 2 for "visible"
    seen = (flags > 0).any(axis=2) if dims == 3 else (points != 0).any(axis=2)
    box = _corners(numbers[:, :4])
    low = np.where(seen[..., None], points, np.inf).min(axis=1)
    high = np.where(seen[..., None], points, -np.inf).max(axis=1)
    inner, outer = np.concatenate([low, -high], axis=1), box * [1, 1, -1, -1]
    is_around = (inner >= outer - 0.01).all(axis=1) & (outer >= [-0.01, -0.01, -1.01, -1.01]).all(axis=1)
    is_blank = (rest == 0).all(axis=(1, 2))
    is_around &= (seen.any(axis=1) | is_blank) & (numbers[:, 2:4] > 0).all(axis=1)
    with np.errstate(invalid="ignore"):  # where none is seen
        first, second = numbers[:, :2], numbers[:, 2:4]
        is_amid = np.abs(first - (low + high) / 2).max(axis=1) <= 0.3 * (high - low).max(axis=1)
        extent = np.maximum(high, first) - np.minimum(low, first)
        is_far = np.linalg.norm(second - first, axis=1) > 2 * np.linalg.norm(extent, axis=1)
        distance = np.linalg.norm(numbers[:, :4].reshape(-1, 2, 2) - ((low + high) / 2)[:, None], axis=2).min(axis=1)
        is_far |= (distance > APART * np.linalg.norm(high - low, axis=1)) & (rest.shape[1] > 2)  # of four corners, two may be
    return is_around & (np.isin(flags, (0, 1, 2)).all(axis=(1, 2)) if dims == 3 else is_amid | is_far | is_blank)


def _areas(polygons: np.ndarray) -> np.ndarray:
    """Areas (k,) of polygons (k, n, 2) by the shoelace formula."""
    x, y = polygons[..., 0], polygons[..., 1]
    return np.abs((x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1)) / 2
