"""Which class of a data set or a checkpoint is which class of a label map: by name, by id only where one side has no names."""

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rfdetr.data.label_map import MAX_SHOWN, Category, LabelMap, show_classes, without_groups
from rfdetr.errors import InputError

_INVISIBLE = "Cf"  # Unicode's category of format characters: byte order marks, joiners, soft hyphens
_NAMELESS = re.compile(r"(?:(?:class|category|label|id|cls) ?)?\d+(?:\.\d+)?|")  # what exporters write where there is no name
_MATCHED_BY = {"id": "ids", "position": "order, the ids differ too"}


@dataclass(frozen=True)
class ClassMatch:
    """Category id of a data set -> label of a label map."""

    labels: dict[int, int]
    moved: tuple[str, ...]  # "'cat' (id 101) is 'cat' (id 1)": classes with objects that have another id or spelling here
    left_out: tuple[Category, ...]  # with objects, and not among the map's classes
    by: Literal["name", "id", "position"]

    def labels_of(self, category_ids: np.ndarray) -> np.ndarray:
        """Return the labels (n,) of an array of category ids (n,), -1 for classes that the label map does not have."""
        ids = np.array([-1, *sorted(self.labels)], dtype=np.int64)[1:]
        if not len(ids):
            return np.full(len(category_ids), -1, dtype=np.int64)
        places = np.searchsorted(ids, category_ids).clip(max=len(ids) - 1)
        labels = np.array([self.labels[id_] for id_ in ids.tolist()], dtype=np.int64)
        return np.where(ids[places] == category_ids, labels[places], -1)

    def remarks(self) -> Iterator[tuple[int, str]]:
        """Give what is worth a line in the log, each with its level."""
        listed = ", ".join(self.moved[:8]) + (f", ... ({len(self.moved)} in all)" if len(self.moved) > 8 else "")
        if self.moved and self.by == "name":
            yield logging.INFO, f"ids or spellings of classes differ from the label map's, the names decide: {listed}"
        elif self.moved:
            yield logging.WARNING, ("one side has no names of classes, so they are matched by their "
                                    f"{_MATCHED_BY[self.by]}; look whether that is right: {listed}")
        if self.left_out:
            yield logging.WARNING, ("boxes of classes that the label map does not have are left out: "
                                    f"{show_classes(self.left_out)}")


def match_classes(
    categories: Sequence[Category], used_ids: Collection[int], label_map: LabelMap, *, source: object
) -> ClassMatch:
    """Find the label of each category of a data set.

    Args:
        used_ids: ids of the categories with objects; those without have no say where something does not fit.
        source: what messages name.

    Raises:
        InputError: the classes with objects are all others, or cannot be told apart; both lists are shown.
    """
    theirs, ours, used = without_groups(categories, used_ids), label_map.categories, set(used_ids)
    by, pairs = _pair(theirs, ours, used)
    unmatched = [category for category in theirs if category.id in used and category.id not in pairs]
    both = (f"its classes are {show_classes(theirs)}; those of the label map are {show_classes(ours)}. Give the classes the "
            "same names, or use the data that the label map was made for")
    names = {normal_name(category.name) for category in ours} - {""}
    if ambiguous := [category for category in unmatched if normal_name(category.name) in names and by == "name"]:
        raise InputError(f"{source}: {show_classes(ambiguous)}: several classes have this name, and their ids do not tell which "
                         f"is which: {both}")
    if unmatched and len(unmatched) == len(used):
        raise InputError(f"{source}: none of its classes is one of the label map's: {both}")
    labels = label_map.labels
    moved = [f"{show_classes([category])} is {show_classes([pairs[category.id]])}" for category in theirs
             if category.id in used and category.id in pairs and category[:2] != pairs[category.id][:2]]
    return ClassMatch({id_: labels[our.id] for id_, our in pairs.items()}, tuple(moved), tuple(unmatched), by)


def differences(theirs: LabelMap, ours: LabelMap, *, there: str, here: str) -> str:
    """Return both lists and what differs between them, as text; empty where the same labels have the same names."""
    names, our_names = ([normal_name(category.name) for category in label_map.categories] for label_map in (theirs, ours))
    if names == our_names and list(theirs.labels.values()) == list(ours.labels.values()):
        return ""
    known, our_known = set(names), set(our_names)
    only_there = [category for category, name in zip(theirs.categories, names) if name not in our_known]
    only_here = [category for category, name in zip(ours.categories, our_names) if name not in known]
    parts = [f"only in {side}: {show_classes(only)}" for side, only in ((there, only_there), (here, only_here)) if only]
    lists = (f"{side} has {len(label_map.category_ids)} classes, {show_classes(label_map.categories)}"
             for side, label_map in ((there, theirs), (here, ours)))
    return "; ".join([*lists, *(parts or ["the same names stand at other labels, or in another number"])])


def pair_by_name(theirs: Iterable[Category], ours: Iterable[Category]) -> dict[int, Category]:
    """Return for each category id of ``theirs`` that class of ``ours`` which has the same name, where there is one."""
    groups: dict[str, tuple[list[Category], list[Category]]] = defaultdict(lambda: ([], []))
    for side, categories in enumerate((theirs, ours)):
        for category in categories:
            groups[normal_name(category.name)][side].append(category)
    return {id_: our for group in groups.values() for id_, our in _pair_one_name(*group).items()}


def normal_name(name: str) -> str:
    """Return what two spellings of a name have in common: capitals, separators and the forms of letters do not count."""
    folded = name.casefold()
    if not name.isascii():
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        folded = "".join(letter for letter in folded if unicodedata.category(letter) != _INVISIBLE)
    return " ".join(folded.replace("_", " ").replace("-", " ").split())


def find_names(option: str, wanted: Iterable[str], names: Sequence[str]) -> list[int]:
    """Return the place among `names` of each class that a setting names; all of that name, where several have it.

    Raises:
        InputError: there is no such class; `option` is what the message calls the setting.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        places[normal_name(name)].append(place)
    if missing := [name for name in wanted if normal_name(name) not in places]:
        raise InputError(f"{option}: there is no class {', '.join(map(repr, missing))}; the classes are "
                         f"{', '.join(list(names)[:MAX_SHOWN])}{', ...' * (len(names) > MAX_SHOWN)}")
    return [place for name in wanted for place in places[normal_name(name)]]


def names_decide(theirs: Iterable[Category], ours: Iterable[Category]) -> bool:
    """Tell whether both sides have names; numbers such as "3" or "class_3" are, where all of one side are on the other as well.

    Those of digits are names. Others are what exporters write where there are none.
    """
    names, our_names = ({normal_name(category.name) for category in side} for side in (theirs, ours))
    return names <= our_names or our_names <= names or not (is_nameless(names) or is_nameless(our_names))


def is_nameless(names: Iterable[str]) -> bool:
    """Tell whether these are no names, but at most numbers."""
    return all(_NAMELESS.fullmatch(normal_name(name)) for name in names)


def _pair(theirs: list[Category], ours: list[Category], used: set[int]) -> tuple[str, dict[int, Category]]:
    """Return how classes were matched, and the pairs: category id of theirs -> one of ours."""
    if names_decide(theirs, ours):
        return "name", pair_by_name(theirs, ours)
    by_id, ids = {category.id: category for category in ours}, {category.id for category in theirs}
    if len(theirs) == len(ours) and not ids <= by_id.keys():
        return "position", dict(zip(sorted(ids), ours))
    if ids <= by_id.keys() or used <= by_id.keys():
        return "id", {id_: by_id[id_] for id_ in ids & by_id.keys()}
    return "id", {}


def _pair_one_name(theirs: list[Category], ours: list[Category]) -> dict[int, Category]:
    """Pair the classes of one name: usually one on each side; where there are several by spelling, id or order."""
    if len(ours) == 1:
        return {category.id: ours[0] for category in theirs}
    for key in (lambda category: category.name, lambda category: category.id):
        known = {key(category): category for category in ours}
        if len(known) == len(ours) and all(key(category) in known for category in theirs):
            return {category.id: known[key(category)] for category in theirs}
    return {category.id: our for category, our in zip(theirs, ours)} if len(theirs) == len(ours) else {}
