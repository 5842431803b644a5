"""Which category id of the annotation files is which label of the model, and what it is called."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rfdetr.errors import InputError
from rfdetr.values import shown

NO_PARENT = ("", "none", "null", None)  # what exporters write as supercategory where there is none
MAX_SHOWN = 12  # classes in a message
MAX_CLASSES = 100_000  # of a label map, and the largest raw label: a head has a row for each
MAX_NAME = 1000  # characters
_INT64 = np.iinfo(np.int64)


class Category(NamedTuple):
    """One entry of an annotation file's list of categories."""

    id: int
    name: str
    supercategory: str | None = None


@dataclass(frozen=True)
class LabelMap:
    """Category id in the files <-> label of the model <-> name.

    Labels are 0..K-1 in the order of `category_ids`; with `raw` they are the category ids themselves, as in the official
    COCO weights (ids 1..90 with gaps).
    """

    category_ids: tuple[int, ...]  # ascending
    category_names: tuple[str, ...]  # of the same length
    raw: bool = False

    def __post_init__(self) -> None:
        ids, names = self.category_ids, self.category_names
        if not 0 < len(ids) == len(names) <= MAX_CLASSES:
            raise InputError(f"label map: {len(ids)} category ids and {len(names)} names; it needs at least one class, at most "
                             f"{MAX_CLASSES}, and one name for each")
        for id_ in ids:
            if type(id_) is not int or not _INT64.min <= id_ <= _INT64.max:
                raise InputError(f"label map: {shown(id_)} cannot be a category id; it must be a whole number of 64 bits")
        for name in names:
            if not isinstance(name, str) or len(name) > MAX_NAME:
                raise InputError(f"label map: {shown(name)} cannot be the name of a class; it must be a text of at most "
                                 f"{MAX_NAME} characters")
        if any(id_ >= after for id_, after in zip(ids, ids[1:])):
            raise InputError(f"label map: the category ids {shown(list(ids))} must ascend, each id once")
        if self.raw and not 0 <= ids[0] <= ids[-1] <= MAX_CLASSES:
            raise InputError(f"label map: category ids {ids[0]} to {ids[-1]} cannot be labels, which are 0 to {MAX_CLASSES}; use "
                             "contiguous labels instead")

    @classmethod
    def from_categories(cls, categories: Iterable[Category], annotated_ids: Iterable[int], *, raw: bool = False) -> "LabelMap":
        """Make the map of a training split.

        Args:
            categories: all that the file lists. A category that only groups others (another category names it as its
                supercategory, and no annotation has its id) is left out, unless that leaves none.
            annotated_ids: ids of the categories that have annotations.
            raw: keep category ids as labels and leave nothing out.
        """
        ordered = sorted(categories, key=lambda category: category.id)
        kept = ordered if raw else without_groups(ordered, annotated_ids)
        return cls(tuple(category.id for category in kept), _distinct_names(kept), raw)

    @property
    def num_classes(self) -> int:
        """The model's `num_classes`; its head has one logit more."""
        return max(1, self.category_ids[-1]) if self.raw else len(self.category_ids)

    @property
    def names(self) -> list[str]:
        """Class names by label; a label without a category (gaps of raw ids) is called ``id_<label>``."""
        if not self.raw:
            return list(self.category_names)
        known = dict(zip(self.category_ids, self.category_names))
        return [known.get(label, f"id_{label}") for label in range(self.num_classes + 1)]

    @property
    def labels(self) -> dict[int, int]:
        """Category id -> label."""
        return dict(zip(self.category_ids, self.category_ids if self.raw else range(len(self.category_ids))))

    @property
    def categories(self) -> list[Category]:
        """The classes as a data set lists them, without what was added to the names that several of them share."""
        rows = list(zip(self.category_ids, self.category_names))
        shared = Counter(name.removesuffix(_suffix(id_)) for id_, name in rows)
        return [Category(id_, plain if shared[plain := name.removesuffix(_suffix(id_))] > 1 else name) for id_, name in rows]

    def labels_of(self, category_ids: np.ndarray) -> np.ndarray:
        """Return the labels of an array of category ids, -1 where the map does not have the id."""
        known = np.asarray(self.category_ids, dtype=np.int64)
        places = np.searchsorted(known, category_ids).clip(max=len(known) - 1)
        labels = known[places] if self.raw else places
        return np.where(known[places] == category_ids, labels, -1).astype(np.int64)

    def category_of(self, label: int) -> int | None:
        """Return the category id of a label, None where a raw label stands for none."""
        if self.raw:
            return label if label in self.category_ids else None
        return self.category_ids[label] if 0 <= label < len(self.category_ids) else None

    def to_dict(self) -> dict:
        """Return plain values, for JSON files and checkpoints."""
        rows = zip(self.labels.values(), self.category_ids, self.category_names)
        return {"kind": "coco" if self.raw else "contiguous",
                "classes": [{"label": label, "category_id": id_, "name": name} for label, id_, name in rows]}

    @classmethod
    def from_dict(cls, values: Any) -> "LabelMap":
        """Make the map again from what `to_dict` returned; the values may come from anywhere."""
        rows = values.get("classes") if isinstance(values, dict) else None
        if not isinstance(rows, (list, tuple)) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"this is not a label map: {shown(values)}; it must be what LabelMap.to_dict wrote")
        labels, ids, names = (tuple(row.get(key) for row in rows) for key in ("label", "category_id", "name"))
        if values.get("kind") not in ("coco", "contiguous"):
            raise InputError(f"label map: its kind is {shown(values.get('kind'))}; it must be contiguous or coco")
        made = cls(ids, names, values["kind"] == "coco")
        if not all(type(label) is int for label in labels) or dict(zip(ids, labels)) != made.labels:
            raise InputError(f"label map: the labels {shown(list(labels))} do not fit the category ids {shown(list(ids))} of "
                             f"kind {values['kind']}")
        return made


def without_groups(categories: Sequence[Category], annotated_ids: Iterable[int]) -> list[Category]:
    """Drop each category that another one names as its supercategory and that has no annotation itself, unless all would go."""
    annotated, members = set(annotated_ids), defaultdict(set)
    for category in categories:
        if isinstance(category.supercategory, str) and category.supercategory not in NO_PARENT:
            members[category.supercategory].add(category.id)
    kept = [category for category in categories
            if category.id in annotated or not members.get(category.name, set()) - {category.id}]
    return kept or list(categories)


def show_classes(classes: Collection[Category]) -> str:
    """List classes for a message."""
    texts = [f"{shown(category.name)} (id {category.id})" for category in list(classes)[:MAX_SHOWN]]
    return ", ".join(texts) + (f", ... ({len(classes)} in all)" if len(classes) > MAX_SHOWN else "")


def _distinct_names(categories: list[Category]) -> tuple[str, ...]:
    """Names of the categories; those that several share get their id behind, since metrics are reported by name."""
    counts = Counter(category.name for category in categories)
    return tuple(name + _suffix(id_) if counts[name] > 1 else name for id_, name, _ in categories)


def _suffix(category_id: int) -> str:
    return f" (id {category_id})"
