"""LabelMap: which categories become which labels, and the way through JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from rfdetr.data import Category, LabelMap
from rfdetr.errors import InputError

GOLDENS = json.loads((Path(__file__).parents[2] / "goldens" / "training" / "dataset.json").read_text())


def label_map(*entries: tuple, annotated: tuple = (), raw: bool = False) -> LabelMap:
    return LabelMap.from_categories([Category(*entry) for entry in entries], annotated, raw=raw)


@pytest.mark.parametrize("case", GOLDENS["filter_parent_categories"], ids=lambda case: case["name"])
def test_golden_grouping_categories(case):
    made = label_map(*[(c["id"], c["name"], c["supercategory"]) for c in case["categories"]], annotated=case["annotated"])
    assert [[id_, name] for id_, name in zip(made.category_ids, made.category_names)] == case["kept"]


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3), (2, 9, 90)], ids=["from 0", "from 1", "sparse"])
def test_labels_are_contiguous_in_ascending_id_order(ids):
    made = label_map((ids[2], "c"), (ids[0], "a"), (ids[1], "b"), annotated=ids)
    assert made.names == ["a", "b", "c"] and made.num_classes == 3
    assert made.labels_of(np.array([ids[2], ids[0], ids[1], 77])).tolist() == [2, 0, 1, -1]
    assert [made.category_of(label) for label in (0, 1, 2, 3)] == [*ids, None]


def test_root_with_the_name_of_its_class_is_left_out():
    """Roboflow gives the unused root the project's name, which may be that of a class."""
    assert label_map((0, "cells", "none"), (1, "cells", "cells"), annotated=(1,)).category_ids == (1,)


def test_annotated_root_is_a_class():
    assert label_map((0, "cells", "none"), (1, "wbc", "cells"), annotated=(0, 1)).names == ["cells", "wbc"]


@pytest.mark.parametrize("placeholder", ["", "none", "null", None])
def test_placeholders_are_not_groups(placeholder):
    assert label_map((0, str(placeholder), None), (1, "a", placeholder), annotated=(1,)).category_ids == (0, 1)


def test_names_that_two_categories_share_are_told_apart():
    assert label_map((4, "a"), (5, "b"), (6, "a")).names == ["a (id 4)", "b", "a (id 6)"]


def test_raw_ids_are_labels():
    made = label_map((1, "person"), (90, "toothbrush"), annotated=(1,), raw=True)
    assert made.num_classes == 90  # the official head: 91 logits
    assert made.labels_of(np.array([90, 1, 5])).tolist() == [90, 1, -1]
    assert (len(made.names), made.names[1], made.names[2], made.names[90]) == (91, "person", "id_2", "toothbrush")
    assert made.category_of(90) == 90 and made.category_of(2) is None


@pytest.mark.parametrize("raw", [False, True])
def test_round_trip_through_json(raw):
    made = label_map((2, "b"), (1, "ä"), raw=raw)
    values = json.loads(json.dumps(made.to_dict()))
    assert values["classes"][0] == {"label": 1 if raw else 0, "category_id": 1, "name": "ä"}
    assert LabelMap.from_dict(values) == made


@pytest.mark.parametrize("values", [
    {}, {"kind": "contiguous", "classes": []}, {"kind": "other", "classes": [{"label": 0, "category_id": 1, "name": "a"}]},
    {"kind": "contiguous", "classes": [{"label": 1, "category_id": 1, "name": "a"}]}, ["a", "b"],
], ids=["empty", "no class", "unknown kind", "wrong label", "a list"])
def test_damaged_dict_is_refused(values):
    with pytest.raises(InputError, match="label map"):
        LabelMap.from_dict(values)


ONE = {"label": 0, "category_id": 1, "name": "a"}


@pytest.mark.parametrize("change, message", [
    ({"category_id": "1"}, "'1' cannot be a category id"), ({"category_id": 1.0}, "1.0 cannot be a category id"),
    ({"category_id": True}, "True cannot be a category id"), ({"category_id": 10**5000}, "100 digits cannot be a category id"),
    ({"name": None}, "None cannot be the name of a class"), ({"name": "x" * 10**6}, "'xxx.* cannot be the name of a class"),
    ({"label": 0.0}, r"labels \[0.0\] do not fit"), ({"label": [0]}, "do not fit"),
])
def test_values_of_other_types(change, message):
    with pytest.raises(InputError, match=message) as caught:
        LabelMap.from_dict({"kind": "contiguous", "classes": [{**ONE, **change}]})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("values", [
    {"kind": "coco", "classes": [{**ONE, "label": 10**9, "category_id": 10**9}]},
    {"kind": ["coco"], "classes": [ONE]}, {"kind": "contiguous", "classes": "ab"}, {"kind": "contiguous", "classes": [[1, 2]]},
    {"kind": "contiguous", "classes": [{"label": i, "category_id": i, "name": "a"} for i in range(100_001)]},
], ids=["raw id of a billion", "kind is a list", "text", "lists", "too many"])
def test_label_maps_are_bounded(values):
    with pytest.raises(InputError, match="label map"):
        LabelMap.from_dict(values)
