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
MOST_AREA, LEAST_AREA = 1.5, 0.001  # of an object, as shares of its box

KINDS = {
    "fractions": Kind("error", "boxes", "boxes in fractions of the image instead of pixels",
                      "multiply them by the width and height of their image", "repairs"),
    "box_format": Kind("error", "boxes", "boxes that are not x, y, width, height, by the rest of the file",
                       "export the data set again with boxes of the left top corner, width and height", "repairs"),
    "area_box": Kind("warning", "boxes", "areas that do not fit their box",
                     "evaluation sorts objects into small, medium and large by the area; look which of the two is right"),
}
READINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {  # of numbers (M, 4), on images w, h, w, h, as xyxy
    "x, y, width, height": lambda numbers, limits: np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]], axis=1),
    "x1, y1, x2, y2": lambda numbers, limits: numbers,
    "the centre's x and y, width, height": lambda numbers, limits: np.concatenate(
        [numbers[:, :2] - numbers[:, 2:] / 2, numbers[:, :2] + numbers[:, 2:] / 2], axis=1),
    "y1, x1, y2, x2": lambda numbers, limits: numbers[:, [1, 0, 3, 2]],
    "x1, x2, y1, y2": lambda numbers, limits: numbers[:, [0, 2, 1, 3]],
    "y, x, height, width": lambda numbers, limits: _as_sizes(numbers[:, [1, 0, 3, 2]], limits),
    "x, y, width, height in percent of the image": lambda numbers, limits: _as_sizes(numbers * limits / 100, limits),
}
SIZES, CORNERS = 0, 1
_as_sizes = READINGS["x, y, width, height"]
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
    limits = np.tile(sizes[:, ::-1].astype(np.float64), 2)
    with np.errstate(all="ignore"):  # NaN and infinity are found later
        fractions = _in_fractions(numbers, sizes)
        report("fractions", fractions, lambda row: f"on {limits[row, 0]:.0f} x {limits[row, 1]:.0f}")
        if fractions.any():  # these arrays are large
            factors = np.where(fractions[:, None], limits, 1.0)
            numbers = numbers * factors
            areas = np.where(areas <= FRACTION, areas * factors[:, :2].prod(axis=1), areas)

        def pixel_extents(rows: np.ndarray) -> np.ndarray:
            extents = extents_of(rows)
            are_fractions = fractions[rows] & (extents <= FRACTION).all(axis=1)
            return np.where(are_fractions[:, None], extents * limits[rows], extents)

        readings = _find_readings(numbers, areas, limits, pixel_extents)
        report("box_format", readings != SIZES, lambda row: f"which looks like {list(READINGS)[readings[row]]}")
        boxes = _as_sizes(numbers, limits)
        for index in np.unique(readings[readings != SIZES]):
            meant = readings == index
            boxes[meant] = list(READINGS.values())[index](numbers[meant], limits[meant])
        box_areas = np.abs((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
        unfitting = (box_areas > 0) & ((areas > MOST_AREA * box_areas) | (areas < LEAST_AREA * box_areas))
        report("area_box", unfitting, lambda row: f"and area {areas[row]:.6g}")
    return boxes, areas


def _in_fractions(numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    found = (numbers >= 1 - FRACTION).all(axis=1) & (numbers <= FRACTION).all(axis=1) & (numbers > 0).any(axis=1)
    found &= sizes.min(axis=1, initial=SMALLEST_SIDE) >= SMALLEST_SIDE
    broken = (numbers != np.round(numbers)).any(axis=1) & found
    is_few = found.sum() < max(min(MIN_FOUND, len(found)), FEW_FRACTIONS * len(found))
    return found & (not is_few and 2 * broken.sum() >= found.sum())


def _find_readings(numbers: np.ndarray, areas: np.ndarray, limits: np.ndarray, extents_of: Callable) -> np.ndarray:
    """Return which of `READINGS` (M,) each box is most likely meant by."""
    rows = np.arange(len(numbers))
    for chosen in (rows[:: max(1, len(rows) // SAMPLE)], rows):  # few first: polygons take time
        found, num_told = _by_extents(numbers[chosen], limits[chosen], extents_of(chosen))
        if not _enough((found != SIZES).sum(), num_told):
            break
    else:
        return found
    readings = np.full(len(numbers), SIZES)
    could_be_corners = (numbers[:, 2:] > numbers[:, :2]).all(axis=1)
    as_sizes = _close(numbers[:, 2:].prod(axis=1), areas)
    as_corners = could_be_corners & ~as_sizes & _close((numbers[:, 2:] - numbers[:, :2]).prod(axis=1), areas)
    if _enough(as_corners.sum(), (areas > 0).sum()):
        readings[as_corners] = CORNERS

    untold = np.isfinite(numbers).all(axis=1) & ~(areas > 0)
    leaves = untold & (numbers[:, :2] + numbers[:, 2:] > limits[:, :2] + EDGE).any(axis=1)
    inside = could_be_corners & (numbers >= -EDGE).all(axis=1) & (numbers <= limits + EDGE).all(axis=1)
    if untold.sum() >= ENOUGH_BOXES and leaves.sum() >= MANY_LEAVE * untold.sum() and inside[untold].all():
        readings[untold] = CORNERS
    return readings


def _by_extents(numbers: np.ndarray, limits: np.ndarray, extents: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the reading (n,) that fits the polygons of each box where x, y, width, height does not, and how many have some."""
    pixels, share = EXTENT_TOLERANCE
    allowed = np.maximum(pixels, share * np.tile(extents[:, 2:] - extents[:, :2], 2))
    fits = np.stack([(np.abs(read(numbers, limits) - extents) <= allowed).all(axis=1) for read in READINGS.values()])
    return np.where(fits.any(axis=0), fits.argmax(axis=0), SIZES), int(np.isfinite(extents).all(axis=1).sum())


def _close(values: np.ndarray, areas: np.ndarray) -> np.ndarray:
    return (areas > 0) & (np.abs(values - areas) <= CLOSE * areas)


def _enough(found: int, told: int) -> bool:
    return found >= max(min(MIN_FOUND, told), MIN_SHARE * told) and found > 0
