"""Check masks as files have them and encode them: this is the only place that sees raw ones.

A mask is polygons, [[x, y, x, y, ...], ...] in pixels, or run lengths, {"size": [h, w], "counts": list or compressed string}.
What can be read in one way only is read, with a finding: a polygon without the outer list, points in lists of their own,
fractions of the picture instead of pixels, points far outside.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rfdetr.data.findings import Kind
from rfdetr.data.segmentations import draw, encode, encode_polygons
from rfdetr.run_length import read_counts
from rfdetr.values import number, shown, whole_number

CHUNK = 4096  # masks that are looked at together
MIN_CORNERS = 3
MAX_NESTING = 4
MAX_OUTLINE = 4_000_000  # pixels; drawing takes time and memory for each
MARGIN = 1.0  # sides of the picture that a polygon may reach beyond it
FRACTION = 1.05  # no polygon in pixels lies within this, all in fractions do
SMALLEST_SIDE = 16  # of a picture for telling them apart
RARE = 1000  # one mask in so many may be a speck in the corner rather than in fractions

KINDS = {
    "bad_mask": Kind("error", "boxes", "masks that are neither polygons in pixels nor run lengths of their image",
                     "export the data set again; the objects are left out", "drops"),
    "mask_fractions": Kind("error", "boxes", "masks in fractions of the image instead of pixels",
                           "multiply their numbers by the width and height of their image", "repairs"),
    "mask_nesting": Kind("info", "boxes", "polygons in other lists than COCO's [[x, y, x, y, ...], ...], read all the same",
                         "nothing to do here; other programs may refuse them", "repairs"),
    "far_polygon": Kind("warning", "boxes", "masks that reach far out of their image, cut off near it",
                        "look whether they belong to another image", "repairs"),
    "short_polygon": Kind("warning", "boxes", "masks with polygons of fewer than three corners, which cover nothing",
                          "draw them again", "repairs"),
}
Note = Callable[[str, str], None]


def read_masks(values: list[Any], sizes: np.ndarray) -> tuple[list[bytes], dict[str, dict[int, str]]]:
    """Check and encode the masks of M objects.

    Args:
        values: what the file has; a polygon may be an ``array("d")``. Those that are done with are taken out, to save memory.
        sizes: (M, 2) h, w of the image that each is on.

    Returns:
        the encoded masks, empty where there is none or one that covers no pixel, and for each of `KINDS` the rows that have
        it, with what is wrong. Those of "bad_mask" are to be left out.
    """
    encoded, found = [b""] * len(values), {kind: {} for kind in KINDS}
    in_fractions, num_masks = [], sum(map(bool, values))
    for start in range(0, len(values), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(values)))
        plain = np.array([_is_plain(values[row]) for row in rows], dtype=bool)
        plain[plain] = _surely_shows([values[row] for row in rows[plain]], sizes[rows[plain]])
        for row, mask in zip(rows[plain].tolist(), encode_polygons([values[row] for row in rows[plain]])):
            encoded[row], values[row] = mask, None
        for row in rows[~plain].tolist():
            if _looks_like_fractions(values[row], *sizes[row].tolist()):
                in_fractions.append(row)
            else:
                encoded[row] = _read_one(values[row], *sizes[row].tolist(), found, row)
    are_fractions = len(in_fractions) > max(min(2, num_masks - 1), num_masks // RARE)
    for row in in_fractions:
        height, width = sizes[row].tolist()
        if are_fractions:
            found["mask_fractions"][row] = f"spans {_extent_text(values[row])} on {width} x {height}"
        encoded[row] = _read_one(values[row], height, width, found, row, scale=(width, height) if are_fractions else (1, 1))
    return encoded, found


def validate_polygons(
    polygons: Sequence[Sequence[float]], height: int, width: int, note: Note, scale: tuple[float, float] = (1, 1)
) -> list[np.ndarray]:
    """Return the polygons of one object as points (n, 2) near its picture, ready for `segmentations.encode` once ravelled.

    Args:
        polygons: numbers x, y, x, y, ...
        note: is told the kind and a description of what is wrong and was mended.
        scale: factors of x and y that make pixels of them.

    Raises:
        ValueError: one of them cannot be drawn; says why.
    """
    kept = []
    for numbers in polygons:
        points = np.asarray(numbers, dtype=np.float64)
        if len(points) % 2 or not np.isfinite(points).all():
            raise ValueError(f"a polygon must be finite numbers x, y, x, y, ...: {shown(points.tolist())}")
        points = points.reshape(-1, 2) * scale
        if len(points) < MIN_CORNERS:
            if len(points):
                note("short_polygon", f"has a polygon of {len(points)} corners: {shown(points.ravel().tolist())}")
            continue
        reach = np.array([width, height]) * MARGIN
        if (points < -reach).any() or (points > reach + (width, height)).any():
            note("far_polygon", f"reaches to {_extent_text([points.ravel()])} on {width} x {height}")
            points = _cut(points.clip(-1e12, 1e12), tuple(-reach), tuple(reach + (width, height)))
        if _outline_length(points) > MAX_OUTLINE:
            raise ValueError(f"a polygon has an outline of more than {MAX_OUTLINE:,} pixels")
        if len(points) >= MIN_CORNERS:
            kept.append(points)
    return kept


def _outline_length(points: np.ndarray) -> float:
    """Steps that it takes to walk around a polygon on the pixel grid, which is what drawing it costs."""
    return float(np.abs(points - np.roll(points, -1, axis=0)).max(axis=1).sum())


def _cut(points: np.ndarray, low: tuple[float, float], high: tuple[float, float]) -> np.ndarray:
    """Cut a polygon at the sides of a rectangle; inside of it nothing changes (Sutherland and Hodgman's way)."""
    for axis in (0, 1):
        for sign, limit in ((1, high[axis]), (-1, -low[axis])):
            points = _cut_at_line(points, axis, sign, limit)
    return points


def _cut_at_line(points: np.ndarray, axis: int, sign: int, limit: float) -> np.ndarray:
    """Keep what has `sign * points[axis] <= limit`."""
    if not len(points):
        return points
    beyond = sign * points[:, axis] - limit
    following = np.roll(points, -1, axis=0)
    beyond_following = np.roll(beyond, -1)
    crosses = (beyond > 0) != (beyond_following > 0)
    share = np.where(crosses, beyond, 0.0) / np.where(crosses, beyond - beyond_following, 1.0)
    crossings = points + share[:, None] * (following - points)
    crossings[:, axis] = sign * limit
    both = np.stack([points, crossings], axis=1)  # each corner, and where the side behind it crosses the line
    return both[np.stack([beyond <= 0, crosses], axis=1)]


def polygon_extents(values: Sequence[Any]) -> np.ndarray:
    """Return the boxes (n, 4) xyxy around polygons, NaN where there is something else; nothing is checked."""
    extents = np.full((len(values), 4), np.nan)
    for row, value in enumerate(values):
        if _is_plain(value):
            points = np.frombuffer(b"".join(value)).reshape(-1, 2)
            extents[row] = *points.min(axis=0), *points.max(axis=0)
    return extents


def _read_one(value: Any, height: int, width: int, found: dict[str, dict[int, str]], row: int, *,
              scale: tuple[float, float] = (1, 1)) -> bytes:
    """Encode any mask, and note what is wrong with it."""
    def note(kind: str, description: str) -> None:
        found[kind].setdefault(row, description)

    try:
        if value is None or value == [] or value == {}:
            return b""
        if isinstance(value, dict):
            return _read_runs(value, height, width)
        if not isinstance(value, list):
            raise ValueError(f"its mask is {shown(value)}, neither polygons nor run lengths")
        polygons, depth = _flat_polygons(value)
        if depth != 1:
            note("mask_nesting", f"has {shown(value)}")
        encoded = encode([points.ravel() for points in validate_polygons(polygons, height, width, note, scale)])
        return encoded if encoded and draw(encoded, height, width).any() else b""
    except ValueError as error:
        note("bad_mask", f"({error})")
        return b""


def _read_runs(runs: dict, height: int, width: int) -> bytes:
    size = runs.get("size")
    wanted = [height, width]
    found = [whole_number(side) for side in size] if isinstance(size, list) else size
    if found != wanted:
        swapped = " (this is width, height; it must be height, width)" if found == wanted[::-1] else ""
        raise ValueError(f"its run lengths are of an image of (h, w) {shown(size)}{swapped}, not {wanted}")
    counts = runs.get("counts")
    lengths = read_counts(counts)
    if lengths.sum() != height * width:
        raise ValueError(f"its run lengths cover {lengths.sum()} pixels of {height * width}")
    if not lengths[1::2].any():
        return b""
    return encode({"size": wanted, "counts": lengths.tolist() if isinstance(counts, list) else counts})


def _flat_polygons(value: list, depth: int = 0) -> tuple[list[Sequence[float]], int]:
    """Find the polygons in nested lists, and how deep they lie (1 is COCO's way); points may be lists of their own."""
    flat = _numbers(value)
    if flat is not None and (flat or depth):
        return [flat], depth
    if depth > MAX_NESTING or not isinstance(value, list):
        raise ValueError(f"a polygon must be a list of numbers x, y, x, y, ...: {shown(value)}")
    points = [_numbers(part[0] if isinstance(part, list) and len(part) == 1 else part) for part in value]
    if len(points) >= MIN_CORNERS and all(point is not None and len(point) == 2 for point in points):
        return [[coordinate for point in points for coordinate in point]], depth + 1 if depth else 0
    found = [_flat_polygons(part, depth + 1) for part in value]
    return [polygon for polygons, _ in found for polygon in polygons], max((level for _, level in found), default=1)


def _numbers(value: Any) -> Sequence[float] | None:
    """Return a list of numbers, None for anything else."""
    if isinstance(value, array):
        return value
    found = [number(part) for part in value] if isinstance(value, list) else [None]
    return None if None in found else found


def _is_plain(value: Any) -> bool:
    """Tell whether these are polygons of numbers with enough corners."""
    return type(value) is list and bool(value) and all(
        type(part) is array and len(part) >= 2 * MIN_CORNERS and len(part) % 2 == 0 for part in value)


def _surely_shows(values: list[list[array]], sizes: np.ndarray) -> np.ndarray:
    """Tell which masks (n,) bool are in order and cover a pixel by their numbers alone, which is much faster than drawing.

    A polygon holds a disc of the radius area / outline, and a disc of radius 1 covers a pixel.
    """
    if not values:
        return np.zeros(0, dtype=bool)
    points = np.frombuffer(b"".join(part for value in values for part in value)).reshape(-1, 2)
    polygons = np.array([len(part) // 2 for value in values for part in value])
    starts = np.cumsum(polygons) - polygons
    objects = np.cumsum([0, *map(len, values)])[:-1]  # first polygon of each
    following = np.arange(1, len(points) + 1)
    following[starts + polygons - 1] = starts
    limits = np.repeat(np.repeat(sizes[:, ::-1], list(map(len, values)), axis=0), polygons, axis=0)
    with np.errstate(all="ignore"):  # NaN and numbers without measure fail every comparison
        shown = np.logical_and.reduceat(((points >= 0) & (points <= limits)).all(axis=1), starts)
        steps = points[following] - points
        around = np.add.reduceat(np.hypot(*steps.T), starts)
        area = np.abs(np.add.reduceat(points[:, 0] * steps[:, 1] - points[:, 1] * steps[:, 0], starts)) / 2
        sure = shown & (area >= around) & (around <= MAX_OUTLINE)
    return np.logical_and.reduceat(sure, objects)


def _looks_like_fractions(value: Any, height: int, width: int) -> bool:
    if min(height, width) < SMALLEST_SIDE or not _is_plain(value):
        return False
    numbers = np.frombuffer(b"".join(value))
    return bool(numbers.min() >= 1 - FRACTION and 0 < numbers.max() <= FRACTION and (numbers != np.round(numbers)).any())


def _extent_text(polygons: Sequence[Sequence[float]]) -> str:
    points = np.concatenate([np.asarray(part) for part in polygons]).reshape(-1, 2)
    return "[{:.6g}, {:.6g}] to [{:.6g}, {:.6g}]".format(*points.min(axis=0), *points.max(axis=0))
