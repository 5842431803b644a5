"""One split of a data set in memory, whatever format it was read from: compact arrays, cleaned.

Readers (coco.py) return a `RawSplit`; `clean` makes `Annotations` of it. Arrays instead of a Python object for each box
keep the memory small, and worker processes that are forked share it.
"""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rfdetr.data.class_matching import ClassMatch
from rfdetr.data.label_map import Category, LabelMap
from rfdetr.data.shared_memory import share

CLAMP_TOLERANCE = 0.01  # pixels; rounding in the file, not worth a word
FARTHEST = 1e9  # pixels; no box reaches farther, which float32 and its products hold


class PackedBytes:
    """A read-only sequence of byte strings in one array; item i is ``data[ends[i]:ends[i + 1]]``."""

    def __init__(self, data: np.ndarray, ends: np.ndarray) -> None:
        self._data, self._ends = data, ends

    @classmethod
    def pack(cls, items: Sequence[bytes]) -> "PackedBytes":
        ends = np.cumsum([0, *map(len, items)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(items), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._data[self._ends[index] : self._ends[index + 1]].tobytes()

    def shared(self) -> "PackedBytes":
        """Return the same in shared memory."""
        return PackedBytes(share(self._data), share(self._ends))


@dataclass(frozen=True, eq=False, kw_only=True)
class RawSplit:
    """What a reader found: N images and M objects, as the files have them."""

    source: Path | str  # the file or folder to name in messages
    image_root: Path | str  # file names are relative to it; an address is a string
    image_ids: np.ndarray  # (N,) int64, each once
    file_names: list[str]  # N
    image_sizes: np.ndarray  # (N, 2) int64 h, w
    categories: list[Category]
    image_indices: np.ndarray  # (M,) int64, which of the N images an object is on
    boxes: np.ndarray  # (M, 4) float64 xyxy in pixels
    category_ids: np.ndarray  # (M,) int64, all of them in categories
    areas: np.ndarray  # (M,) float64 in pixels; NaN where the file does not say
    is_crowd: np.ndarray  # (M,) bool
    segmentations: list[bytes] | None = None  # M checked masks (mask_reading.py), None if not asked for
    open_image: Callable[[str], BinaryIO] | None = None  # opens a file name that is not a file under image_root (shards)

    def rows_by_image(self) -> list[np.ndarray]:
        """Return which objects each image has."""
        order = np.argsort(self.image_indices, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.image_indices, minlength=len(self.image_ids)))[:-1])

    def with_objects(self, chosen: np.ndarray, **changes: Any) -> "RawSplit":
        """Return the split with some of its objects, rows or (M,) bool, and other changes."""
        columns = {name: getattr(self, name)[chosen] for name in ("image_indices", "boxes", "category_ids", "areas", "is_crowd")}
        if self.segmentations is not None:
            columns["segmentations"] = [self.segmentations[row] for row in np.arange(len(self.boxes))[chosen]]
        return replace(self, **{**columns, **changes})

    def with_images(self, images: np.ndarray, **changes: Any) -> "RawSplit":
        """Return the split with the images of these places, (n,) int, where one may be several times, and their objects."""
        by_image = self.rows_by_image()
        rows = [by_image[image] for image in images]
        return self.with_objects(
            np.concatenate([*rows, np.zeros(0, dtype=np.int64)]),
            **{"image_indices": np.repeat(np.arange(len(images)), list(map(len, rows))), "image_ids": self.image_ids[images],
               "file_names": [self.file_names[image] for image in images], "image_sizes": self.image_sizes[images], **changes})


@dataclass(frozen=True, eq=False, kw_only=True)
class Annotations:
    """A cleaned split: the objects of image i are the rows ``offsets[i]:offsets[i + 1]``."""

    source: Path | str
    image_root: Path | str
    image_ids: np.ndarray  # (N,) int64, ascending
    file_names: np.ndarray  # (N,) bytes
    image_sizes: np.ndarray  # (N, 2) int64 h, w
    offsets: np.ndarray  # (N + 1,) int64
    boxes: np.ndarray  # (M, 4) float32 xyxy in pixels; inside the image if they were clipped
    labels: np.ndarray  # (M,) int64
    areas: np.ndarray  # (M,) float32 in pixels, as annotated
    is_crowd: np.ndarray  # (M,) bool
    segmentations: PackedBytes | None
    open_image: Callable[[str], BinaryIO] | None = None  # as in RawSplit; it is sent to worker processes
    file_contents: PackedBytes | None = None  # of the images, where they are kept in memory; empty where there is no file

    def image_path(self, index: int) -> Path | str:
        """Where a picture is, for messages too."""
        name = os.fsdecode(self.file_names[index])
        return self.image_root / name if isinstance(self.image_root, Path) else f"{self.image_root}/{name}"

    def image_file(self, index: int) -> Path | BinaryIO:
        """What a picture is decoded from."""
        if self.file_contents is not None and (content := self.file_contents[index]):
            return io.BytesIO(content)
        return self.image_path(index) if self.open_image is None else self.open_image(os.fsdecode(self.file_names[index]))

    def shared(self) -> "Annotations":
        """Return the same in shared memory, so that processes which are not forked get it without a copy each."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: share(value) for name, value in values.items() if isinstance(value, np.ndarray)}
        packed = {name: value.shared() for name, value in values.items() if isinstance(value, PackedBytes)}
        return replace(self, **arrays, **packed)


def cut_boxes(raw: RawSplit) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes (M, 4) cut at the edges of their images, and which (M,) bool can be objects: finite, with an area."""
    boxes = raw.boxes.clip(0, np.tile(raw.image_sizes[raw.image_indices][:, ::-1], 2))  # w, h, w, h
    return boxes, np.isfinite(raw.boxes).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def clean(raw: RawSplit, classes: LabelMap | ClassMatch, *, training: bool) -> tuple[Annotations, dict[str, int]]:
    """Drop what cannot be an object, and count everything that was done.

    Args:
        training: also leave out crowds, cut boxes at the edge of their image, and drop those without an area in it. Evaluation
            measures against what is annotated, as pycocotools does.

    Returns:
        the annotations, with images in the order of their ids, and the report: a count for each kind of dirt.
    """
    image_order = np.argsort(raw.image_ids, kind="stable")
    inside, usable = cut_boxes(raw)
    labels = classes.labels_of(raw.category_ids)

    crowds = raw.is_crowd if training else np.zeros_like(raw.is_crowd)
    unmapped = (labels < 0) & ~crowds
    candidates = ~crowds & ~unmapped
    finite = np.isfinite(raw.boxes).all(axis=1)
    kept = candidates & (usable if training else finite)

    place = np.empty(len(image_order), dtype=np.int64)
    place[image_order] = np.arange(len(image_order))
    images = place[raw.image_indices]
    rows = np.flatnonzero(kept)[np.argsort(images[kept], kind="stable")]
    counts = np.bincount(images[rows], minlength=len(image_order))
    boxes = inside[rows] if training else raw.boxes[rows].clip(-FARTHEST, FARTHEST)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = np.where(np.isfinite(raw.areas[rows]), raw.areas[rows], sides[:, 0] * sides[:, 1])
    annotations = Annotations(
        source=raw.source, image_root=raw.image_root, image_ids=raw.image_ids[image_order],
        file_names=np.array([os.fsencode(raw.file_names[index]) for index in image_order], dtype=np.bytes_),
        image_sizes=raw.image_sizes[image_order], offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes.astype(np.float32), labels=labels[rows], areas=areas.astype(np.float32), is_crowd=raw.is_crowd[rows],
        segmentations=None if raw.segmentations is None else PackedBytes.pack([raw.segmentations[row] for row in rows]),
        open_image=raw.open_image,
    )
    moved = np.abs(inside - raw.boxes).max(axis=1, initial=0) > CLAMP_TOLERANCE
    without_area = int((candidates & finite & ~usable).sum())
    return annotations, {
        "images": len(image_order), "background_images": int((counts == 0).sum()), "boxes": len(rows),
        "crowds": int(annotations.is_crowd.sum()), "crowds_dropped": int(crowds.sum()), "unmapped": int(unmapped.sum()),
        "not_finite": int((candidates & ~finite).sum()), "zero_size": without_area * training,
        "unmatchable": without_area * (not training), "clamped": int((moved & kept).sum()) * training,
    }


def is_dirty(report: dict[str, int]) -> bool:
    """Tell whether something was left out of a split, or cannot be found in it."""
    return any(report.get(key) for key in ("unmapped", "not_finite", "zero_size", "unmatchable", "without_mask"))


def describe(report: dict[str, int]) -> str:
    """Say in one line what a split holds and what was done to it."""
    done = {
        "crowds_dropped": "crowd regions left out", "crowds": "crowd regions",
        "unmapped": "boxes left out because the label map lacks their category",
        "not_finite": "boxes with NaN or infinite coordinates dropped", "zero_size": "boxes without an area dropped",
        "unmatchable": "boxes without an area in their image, which count as missed",
        "clamped": "boxes cut at the edge of their image",
        "without_mask": "objects without a mask (trained on by class and box alone, and missed in evaluation)",
    }
    notes = [f"{report[key]} {text}" for key, text in done.items() if report.get(key)]
    head = f"{report['images']} images ({report['background_images']} without boxes), {report['boxes']} boxes"
    return "; ".join([head, *notes])
