"""Read boxes of COCO files, x, y, width, height, and notice when the file as a whole says that they are something else.

The rest of an entry tells: `area` against width x height, the polygons around the object, the edges of the picture. What boxes
most likely are, they are read as; training refuses the file, and --fix writes what was read.
"""

from collections.abc import Callable

import numpy as np

from rfdetr.data.findings import Kind

MIN_FOUND = 3  # boxes; fewer are coincidences, unless there are no more
MIN_SHARE = 0.1  # of the boxes that tell something
FEW_FRACTIONS = 0.001  # of the boxes; those may be specks in the corner of their picture
FRACTION = 1.05  # no box in pixels ends within this, all boxes in fractions do
SMALLEST_SIDE = 16  # of a picture for telling fractions from pixels
CLOSE = 0.02  # relative difference of equal areas
EXTENT_TOLERANCE = (2.0, 0.1)  # pixels, and share of the side, between a box and the polygons in it; the larger counts
SAMPLE = 300  # boxes whose polygons are looked at first
MANY_LEAVE = 0.2  # of the boxes that only the picture's edges tell something about
ENOUGH_BOXES = 20  # for that
EDGE = 2.0  # pixels

KINDS = {
    "fractions": Kind("error", "boxes", "boxes in fractions of the image instead of pixels",
                      "multiply them by the width and height of their image", "repairs"),
    "box_format": Kind("error", "boxes", "boxes that are not x, y, width, height, by the rest of the file",
                       "export the data set again with boxes of the left top corner, width and height", "repairs"),
}
Report = Callable[[str, np.ndarray, Callable[[int], str]], None]  # kind, which rows (M,) bool, what is said of a row


def read_boxes(
    numbers: np.ndarray, areas: np.ndarray, sizes: np.ndarray, extents_of: Callable[[np.ndarray], np.ndarray], report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (M, 4) xyxy in pixels and areas (M,).

    Args:
        numbers: (M, 4), what the file has for each box.
        areas: (M,), NaN where it has none.
        sizes: (M, 2) h, w of the image that each box is on.
        extents_of: rows -> boxes (n, 4) xyxy around their polygons, NaN where there are none.
    """
    limits = sizes[:, ::-1].astype(np.float64)
    with np.errstate(all="ignore"):  # NaN and infinity are found later
        fractions = _in_fractions(numbers, sizes)
        report("fractions", fractions, lambda row: f"on {limits[row, 0]:.0f} x {limits[row, 1]:.0f}")
        factors = np.where(fractions[:, None], limits, 1.0)
        numbers = numbers * np.tile(factors, 2)
        areas = np.where(areas <= FRACTION, areas * factors.prod(axis=1), areas)
        corners, centres = _other_formats(numbers, areas, limits, extents_of, fractions)
        report("box_format", corners | centres, lambda row: "which looks like {}".format(
            "x1, y1, x2, y2" if corners[row] else "the centre's x and y, width, height"))
        boxes = np.where(corners[:, None], numbers, _from_sizes(numbers))
        return np.where(centres[:, None], _from_centres(numbers), boxes), areas


def _in_fractions(numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    found = (numbers >= 1 - FRACTION).all(axis=1) & (numbers <= FRACTION).all(axis=1) & (numbers > 0).any(axis=1)
    found &= sizes.min(axis=1, initial=SMALLEST_SIDE) >= SMALLEST_SIDE
    broken = (numbers != np.round(numbers)).any(axis=1) & found
    is_few = found.sum() < max(min(MIN_FOUND, len(found)), FEW_FRACTIONS * len(found))
    return found & (not is_few and 2 * broken.sum() >= found.sum())


def _from_sizes(numbers: np.ndarray) -> np.ndarray:
    return np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]], axis=1)


def _from_centres(numbers: np.ndarray) -> np.ndarray:
    return np.concatenate([numbers[:, :2] - numbers[:, 2:] / 2, numbers[:, :2] + numbers[:, 2:] / 2], axis=1)


def _other_formats(
    numbers: np.ndarray, areas: np.ndarray, limits: np.ndarray, extents_of: Callable, fractions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Tell which boxes (M,) bool are corners x1, y1, x2, y2, and which have their centre in front."""
    could_be_corners = (numbers[:, 2:] > numbers[:, :2]).all(axis=1)
    as_sizes = _close(numbers[:, 2] * numbers[:, 3], areas)
    as_corners = could_be_corners & ~as_sizes & _close((numbers[:, 2:] - numbers[:, :2]).prod(axis=1), areas)
    none = np.zeros(len(numbers), dtype=bool)
    corners = as_corners if _enough(as_corners.sum(), (areas > 0).sum()) else none
    decided = as_sizes | corners | ~np.isfinite(numbers).all(axis=1)

    rows = np.flatnonzero(~decided)
    for chosen in (rows[:: max(1, len(rows) // SAMPLE)], rows):  # few first: polygons take time
        extents = extents_of(chosen)
        extents = np.where(fractions[chosen, None] & (extents <= FRACTION).all(axis=1)[:, None],
                           extents * np.tile(limits[chosen], 2), extents)
        told = np.isfinite(extents).all(axis=1)
        readings = (reading(numbers[chosen]) for reading in (_from_sizes, lambda corners: corners, _from_centres))
        fits_sizes, fits_corners, fits_centres = (told & _fits(boxes, extents) for boxes in readings)
        found = [fits & ~fits_sizes for fits in (fits_corners, fits_centres & ~fits_corners)]
        if not _enough(max(map(np.sum, found)), told.sum()):
            break
    else:
        corners, centres = (_set(part, rows, more) for part, more in zip((corners, none), found))
        return corners, centres

    rest = ~decided & ~(areas > 0)
    leaves = rest & (numbers[:, :2] + numbers[:, 2:] > limits + EDGE).any(axis=1)
    inside = could_be_corners & (numbers >= -EDGE).all(axis=1) & (numbers[:, 2:] <= limits + EDGE).all(axis=1)
    if rest.sum() >= ENOUGH_BOXES and leaves.sum() >= MANY_LEAVE * rest.sum() and inside[rest].all():
        corners = corners | rest
    return corners, none


def _close(values: np.ndarray, areas: np.ndarray) -> np.ndarray:
    return (areas > 0) & (np.abs(values - areas) <= CLOSE * areas)


def _enough(found: int, told: int) -> bool:
    return found >= max(min(MIN_FOUND, told), MIN_SHARE * told) and found > 0


def _fits(boxes: np.ndarray, extents: np.ndarray) -> np.ndarray:
    pixels, share = EXTENT_TOLERANCE
    allowed = np.maximum(pixels, share * np.tile(extents[:, 2:] - extents[:, :2], 2))
    return (np.abs(boxes - extents) <= allowed).all(axis=1)


def _set(flags: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    changed = flags.copy()
    changed[rows] = values
    return changed
