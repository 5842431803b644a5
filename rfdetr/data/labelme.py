"""Read one annotation file of LabelMe: JSON with the shapes on a picture, and often the picture itself (`imageData`).

Polygons, circles (as polygons of 64 corners) and masks are objects with a mask, rectangles are boxes. Polygons of one label and
one `group_id` are the parts of one object. Points and lines have no area; they become a finding. `imageData` is used only where
the file of the picture is missing.
"""

import base64
import binascii
import io
import json
import math
import mmap
import re
from array import array
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image

from rfdetr.data.images import ImageError
from rfdetr.data.picture_notes import NoteError, PictureNote
from rfdetr.run_length import run_lengths
from rfdetr.values import number, shown, whole_number

CORNERS = 64  # of a circle's polygon
SHAPES, PICTURE = (re.compile(rb'"%s"\s*:' % key) for key in (b"shapes", b"image(?:Path|Width|Data)"))
POLYGONS = ("polygon", "rotation", "quadrilateral")  # the latter two of X-AnyLabeling
MERGED = (*POLYGONS, "circle")


def looks_like_labelme(path: Path) -> bool:
    """Tell whether a file is one of LabelMe's; it is searched, not parsed."""
    with open(path, "rb") as file:
        if not file.read(1):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return all(pattern.search(data) for pattern in (SHAPES, PICTURE))


def read_labelme(path: Path) -> PictureNote | None:
    """Return what a file says of its picture; None for other JSON.

    Raises:
        NoteError: it is not JSON; says where.
    """
    content = _parse(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        return None
    sides = [whole_number(content.get(key)) or 0 for key in ("imageHeight", "imageWidth")]
    size = tuple(sides) if min(sides) > 0 else None
    name, data = content.get("imagePath"), content.get("imageData")
    objects, groups = [], {}
    for place, shape in enumerate(content["shapes"], start=1):
        shape = shape if isinstance(shape, dict) else {}
        entry = _object(shape, f"{path.name}: shape {place}", size)
        group = (shape.get("group_id"), entry["class"])
        is_part = type(group[0]) in (int, str) and entry["kind"] in MERGED and "bbox" in entry
        if is_part and group in groups:
            _add_part(groups[group], entry)
        else:
            objects.append(entry)
            if is_part:
                groups[group] = entry
    return PictureNote(name if isinstance(name, str) else "", size, objects, has_picture=isinstance(data, str) and data != "")


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise NoteError(f"not valid JSON at line {error.lineno}, column {error.colno} ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # not text, thousands of digits or brackets
        raise NoteError(f"not JSON that can be read ({str(error)[:80]})") from None


def _object(shape: dict[str, Any], place: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return COCO's entry of a shape; without "bbox" where it has no area, which `kind` explains."""
    kind, label = shape.get("shape_type") or "polygon", shape.get("label")
    label = str(label) if type(label) in (int, float) else label
    kind = kind if isinstance(kind, str) else shown(kind)
    entry = {"id": place, "class": label.strip() if isinstance(label, str) else "", "kind": kind}
    points = _points(shape.get("points"))
    if points is None or len(points) < {"rectangle": 2, "circle": 2, "mask": 2}.get(kind, 3):
        entry["kind"] = f"{shown(kind)} with points {shown(shape.get('points'))}"
        return entry
    if kind == "circle":
        radius, angles = math.dist(*points[:2]), np.arange(CORNERS) * (2 * np.pi / CORNERS)
        points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if kind in MERGED:
        entry["segmentation"] = [array("d", points.ravel().tolist())]
    if kind == "mask" and size is not None:
        entry["segmentation"] = _runs(shape.get("mask"), points[0], size)
    if kind in (*MERGED, "mask", "rectangle"):
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        end = 1 if kind == "mask" else 0  # its points are the first and the last pixel
        entry["bbox"] = [left, top, right - left + end, bottom - top + end]
    return entry


def _points(value: Any) -> np.ndarray | None:
    """Return points (n, 2), None for anything else."""
    rows = value if isinstance(value, list) else [None]
    numbers = [[number(part) for part in row] if isinstance(row, list) and len(row) == 2 else [None] for row in rows]
    if any(None in row for row in numbers):
        return None
    points = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    return points if np.isfinite(points).all() else None


def _runs(encoded: Any, corner: np.ndarray, size: tuple[int, int]) -> dict[str, Any] | str:
    """Put a mask, a picture of its box, to its place; what cannot be read is returned as the reason, which the check refuses."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded)), formats=("PNG",)) as picture:
            if picture.width * picture.height > size[0] * size[1]:
                raise ValueError("it is larger than its picture")
            cut = np.asarray(picture.convert("L")) > 0
    except Exception as error:  # decoders have errors of their own
        return f"a mask that cannot be decoded ({' '.join(str(error).split())[:80]})"
    whole = np.zeros(size, dtype=bool)
    left, top = (max(0, round(value)) for value in corner.tolist())
    place = whole[top : top + cut.shape[0], left : left + cut.shape[1]]
    place |= cut[: place.shape[0], : place.shape[1]]
    return run_lengths(torch.from_numpy(whole[None]))[0]


def _add_part(entry: dict[str, Any], part: dict[str, Any]) -> None:
    """Make a polygon a part of the object that an earlier one began."""
    entry["segmentation"] += part["segmentation"]
    corners = [(x, y, x + width, y + height) for x, y, width, height in (entry["bbox"], part["bbox"])]
    left, top, right, bottom = (choose(values) for choose, values in zip((min, min, max, max), zip(*corners)))
    entry["bbox"] = [left, top, right - left, bottom - top]


class EmbeddedPictures(NamedTuple):
    """Opens the pictures of a data set, some of which are only inside of their annotation files."""

    root: str
    files: dict[str, str]  # name of such a picture -> its annotation file

    def __call__(self, name: str) -> BinaryIO:
        path = Path(self.root) / name
        try:
            if name not in self.files:
                return path.open("rb")
            return io.BytesIO(base64.b64decode(_parse(Path(self.files[name]))["imageData"]))
        except (OSError, NoteError, binascii.Error, KeyError, TypeError) as error:
            raise ImageError(f"{self.files.get(name, path)}: the picture cannot be read ({error}); put its file there") from None


def picture_ending(path: Path) -> str:
    """Return the ending that fits the picture inside of a file, "" where it is none."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(_parse(path)["imageData"]))) as picture:
            return {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}.get(picture.format, "")
    except Exception:  # decoders have errors of their own
        return ""
