"""Which category id of the annotation files is which label of the model, and what it is called."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rfdetr.errors import InputError

NO_PARENT = ("", "none", "null", None)  # what exporters write as supercategory where there is none
MAX_ROWS_SHOWN = 12


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
        if not self.category_ids or len(self.category_ids) != len(self.category_names):
            raise InputError(f"label map: {len(self.category_ids)} category ids and {len(self.category_names)} names; "
                             "it needs at least one class, and one name for each")
        if list(self.category_ids) != sorted(set(self.category_ids)):
            raise InputError(f"label map: the category ids {list(self.category_ids)} must ascend, each id once")
        if self.raw and self.category_ids[0] < 0:
            raise InputError(f"label map: category id {self.category_ids[0]} cannot be a label; use contiguous labels instead")

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
        kept = ordered if raw else _without_groups(ordered, set(annotated_ids)) or ordered
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
        labels = self.category_ids if self.raw else range(len(self.category_ids))
        rows = zip(labels, self.category_ids, self.category_names)
        return {"kind": "coco" if self.raw else "contiguous",
                "classes": [{"label": label, "category_id": id_, "name": name} for label, id_, name in rows]}

    @classmethod
    def from_dict(cls, values: dict) -> "LabelMap":
        """Make the map again from what `to_dict` returned."""
        try:
            raw = {"coco": True, "contiguous": False}[values["kind"]]
            labels, ids, names = zip(*[(row["label"], row["category_id"], row["name"]) for row in values["classes"]])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is not a label map ({error!r}): {str(values)[:200]}; it must be what LabelMap.to_dict wrote"
                             ) from None
        made = cls(ids, names, raw)
        if made.to_dict() != {"kind": values["kind"], "classes": list(values["classes"])}:
            raise InputError(f"label map: the labels {list(labels)} do not fit category ids {list(ids)} of kind {values['kind']}")
        return made

    def differences(self, other: "LabelMap", *, mine: str = "this map", theirs: str = "the other") -> str:
        """Return both maps side by side where they differ, as text; an empty string where they are equal."""
        if self == other:
            return ""
        if self.raw != other.raw:
            return f"{mine} has {_kind(self)}, {theirs} has {_kind(other)}"
        rows, other_rows = _rows(self), _rows(other)
        different = [label for label in sorted({*rows, *other_rows}) if rows.get(label) != other_rows.get(label)]
        lines = [f"  {label}: {rows.get(label, '-')} | {other_rows.get(label, '-')}" for label in different[:MAX_ROWS_SHOWN]]
        if len(different) > MAX_ROWS_SHOWN:
            lines.append(f"  and {len(different) - MAX_ROWS_SHOWN} more")
        return "\n".join([f"label: {mine} ({len(rows)} classes) | {theirs} ({len(other_rows)} classes)", *lines])


def _without_groups(categories: list[Category], annotated_ids: set[int]) -> list[Category]:
    """Drop each category that another one names as its supercategory and that has no annotation itself."""
    def groups_others(category: Category) -> bool:
        return category.name not in NO_PARENT and any(
            other.supercategory == category.name for other in categories if other.id != category.id)

    return [category for category in categories if category.id in annotated_ids or not groups_others(category)]


def _distinct_names(categories: list[Category]) -> tuple[str, ...]:
    """Names of the categories; those that several share get their id behind, since metrics are reported by name."""
    names = [category.name for category in categories]
    return tuple(f"{name} (id {category.id})" if names.count(name) > 1 else name for name, category in zip(names, categories))


def _kind(label_map: LabelMap) -> str:
    return "category ids as labels" if label_map.raw else "contiguous labels"


def _rows(label_map: LabelMap) -> dict[int, str]:
    classes = label_map.to_dict()["classes"]
    return {row["label"]: f"{row['name']!r} (category id {row['category_id']})" for row in classes}
