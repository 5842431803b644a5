"""One split under examination: what was read of it, and where its findings go."""

import os
from collections.abc import Callable

import numpy as np

from rfdetr.data.annotations import RawSplit, cut_boxes
from rfdetr.data.findings import MAX_EXAMPLES, Findings, Kind
from rfdetr.data.images import MAX_PIXELS


class SplitCheck:
    """Takes findings about the images and objects of a split, and remembers which those are."""

    def __init__(self, name: str, raw: RawSplit, findings: Findings) -> None:
        self.name, self.raw, self.findings = name, raw, findings
        self.white_level: int | None = None  # of the data set, and ...
        self.max_pixels = MAX_PIXELS  # ... the limit of a picture, as `read_image` takes them
        self.keeps_shape = False  # of pictures at the model's input
        self.category_names = {category.id: category.name for category in raw.categories}
        self.marked_objects: dict[str, np.ndarray] = {}  # name of a finding -> rows of the objects
        self.marked_images: dict[str, np.ndarray] = {}  # name of a finding -> indices of the images
        self.folders = {os.path.join(raw.image_root, os.path.dirname(name)) for name in raw.file_names}  # of the images
        limits = raw.image_sizes[raw.image_indices][:, ::-1]
        self.limits = np.tile(limits, 2).astype(np.float64)  # (M, 4) w, h, w, h of the image that an object is on
        self.sides = raw.boxes[:, 2:] - raw.boxes[:, :2]  # (M, 2) w, h
        self.usable = cut_boxes(raw)[1]  # (M,) what training keeps
        self.reported = {found.name: found.count for found in findings if found.split == name}  # by the reader, with counts

    def rows_by_image(self, rows: np.ndarray) -> list[np.ndarray]:
        """Divide rows of objects into those of each image that has any."""
        rows = rows[np.argsort(self.raw.image_indices[rows], kind="stable")]
        starts = np.flatnonzero(np.diff(self.raw.image_indices[rows])) + 1
        return np.split(rows, starts) if len(rows) else []

    def counts(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Number of objects on each image, (N,)."""
        indices = self.raw.image_indices if rows is None else self.raw.image_indices[rows]
        return np.bincount(indices, minlength=len(self.raw.image_ids))

    def describe_object(self, row: int) -> str:
        """Name an object by its file, class and box, as COCO writes it."""
        x, y = self.raw.boxes[row, :2].tolist()
        width, height = self.sides[row].tolist()
        name = self.category_names.get(int(self.raw.category_ids[row]), "?")
        return f"{self.raw.file_names[self.raw.image_indices[row]]} {name} [{x:.6g}, {y:.6g}, {width:.6g}, {height:.6g}]"

    def note_objects(self, name: str, kind: Kind, rows: np.ndarray, detail: Callable[[int], str] | None = None) -> None:
        """Add a finding about objects; `detail` says more about a row in the examples."""
        examples = [self.describe_object(row) + (f" {detail(row)}" if detail else "") for row in rows[:MAX_EXAMPLES].tolist()]
        self._note(name, kind, examples, rows, self.marked_objects)

    def note_images(self, name: str, kind: Kind, indices: np.ndarray, detail: Callable[[int], str] | None = None) -> None:
        """Add a finding about images; `detail` says more about an image in the examples."""
        examples = [self.raw.file_names[index] + (f" ({detail(index)})" if detail else "")
                    for index in indices[:MAX_EXAMPLES].tolist()]
        self._note(name, kind, examples, indices, self.marked_images)

    def note(self, name: str, kind: Kind, examples: list[str], count: int | None = None) -> None:
        """Add a finding about the split as a whole, or about what it does not list."""
        self.findings.split = self.name
        self.findings.add(name, kind, examples, count)

    def _note(self, name: str, kind: Kind, examples: list[str], places: np.ndarray, marked: dict[str, np.ndarray]) -> None:
        if len(places):
            self.note(name, kind, examples, len(places))
            marked[name] = places
