"""The same classes under other ids, spellings and in another number: found by name, or refused with both lists."""

import json
import logging

import numpy as np
import pytest
import yaml

from rfdetr.data import Category, LabelMap, open_dataset
from rfdetr.data.class_matching import differences, match_classes
from rfdetr.errors import InputError
from rfdetr.weights.class_head import COCO_CLASSES

SIZE = {"image_size": (32, 32)}
CAT_DOG = LabelMap((3, 7), ("cat", "dog"))


def match(categories: dict[int, str], label_map: LabelMap, used=None):
    rows = [Category(id_, name) for id_, name in categories.items()]
    return match_classes(rows, list(categories) if used is None else used, label_map, source="val.json")


@pytest.mark.parametrize("categories, labels", [
    ({3: "cat", 7: "dog"}, {3: 0, 7: 1}),
    ({101: "cat", 102: "dog"}, {101: 0, 102: 1}),  # other ids
    ({3: "dog", 7: "cat"}, {3: 1, 7: 0}),  # swapped
    ({3: "bird", 4: "dog", 5: "cat"}, {4: 1, 5: 0}),  # one more, in another order
    ({7: "cat"}, {7: 0}),  # a part, under the id of the other
    ({1: "CAT ", 2: "_dog\u200b"}, {1: 0, 2: 1}),
    ({1: "cat", 2: "Cat", 3: "dog"}, {1: 0, 2: 0, 3: 1}),  # two spellings of one class
])
def test_names_decide(categories, labels):
    found = match(categories, CAT_DOG)
    assert found.labels == labels and found.by == "name"
    ids = np.array([*categories, 999])
    assert found.labels_of(ids).tolist() == [*[labels.get(id_, -1) for id_ in categories], -1]
    same = all((id_, categories[id_]) == (CAT_DOG.category_of(label), CAT_DOG.names[label]) for id_, label in labels.items())
    assert bool(found.moved) != same


@pytest.mark.parametrize("ours, theirs", [
    ("traffic light", "Traffic_Light"), ("traffic-light", "traffic  light"), ("Straße", "STRASSE"), ("é", "e\u0301"),
    ("\ufb01g", "fig"), ("cat", "\ufeffcat"), ("cat", "cat\u00a0"), ("\uff21B", "ab"),
])
def test_spellings_of_one_name(ours, theirs):
    label_map = LabelMap((0, 1), ("other", ours))
    assert match({5: theirs}, label_map).labels == {5: 1}


def test_exact_spelling_comes_first():
    label_map = LabelMap((1, 2, 3), ("Cat", "cat", "CAT"))
    assert match({5: "cat", 6: "Cat"}, label_map).labels == {5: 1, 6: 0}
    assert match({1: "cAt", 2: "caT"}, label_map).labels == {1: 0, 2: 1}  # of no spelling, so the ids tell them apart
    with pytest.raises(InputError, match=r"val.json: 'cAt' \(id 9\): several classes have this name"):
        match({9: "cAt"}, label_map)
    assert match({9: "cAt", 1: "cat"}, label_map, used=[]).left_out == ()


@pytest.mark.parametrize("categories, labels", [
    ({0: "cat", 1: "cat"}, {0: 0, 1: 1}), ({1: "cat"}, {1: 1}), ({8: "cat", 9: "cat"}, {8: 0, 9: 1}),
])
def test_classes_of_one_name(categories, labels):
    label_map = LabelMap.from_categories([Category(0, "cat"), Category(1, "cat")], [0, 1])
    assert label_map.names == ["cat (id 0)", "cat (id 1)"] and match(categories, label_map).labels == labels
    assert LabelMap.from_dict(label_map.to_dict()).categories == [Category(0, "cat"), Category(1, "cat")]
    assert LabelMap((4,), ("cat (id 4)",)).categories == [Category(4, "cat (id 4)")]  # a name of its own


@pytest.mark.parametrize("theirs, ours, labels, by", [
    ({0: "0", 1: "1"}, {0: "cat", 1: "dog"}, {0: 0, 1: 1}, "id"),
    ({0: "class_0", 1: "class_1"}, {0: "cat", 1: "dog", 2: "cow"}, {0: 0, 1: 1}, "id"),
    ({1: "1", 2: "2"}, {0: "cat", 1: "dog"}, {1: 0, 2: 1}, "position"),
    ({0: "cat", 1: "dog"}, {1: "", 2: " "}, {0: 0, 1: 1}, "position"),
    ({1: "1", 2: "2"}, {0: "0", 1: "1"}, {1: 0, 2: 1}, "position"),
    ({0: "0", 1: "1", 2: "2"}, {1: "0", 2: "1", 3: "2"}, {0: 0, 1: 1, 2: 2}, "name"),  # digits, with a root before them or not
    ({1: "3", 2: "5"}, {0: "1", 1: "3", 2: "5"}, {1: 1, 2: 2}, "name"),
    ({0: "class_0", 1: "dog"}, {0: "cat", 1: "dog"}, {1: 1}, "name"),  # that the others have names tells that ids may differ
])
def test_ids_decide_only_where_there_are_no_names(theirs, ours, labels, by):
    label_map = LabelMap.from_categories([Category(*row) for row in ours.items()], ours)
    found = match(theirs, label_map)
    assert (found.labels, found.by) == (labels, by)
    if by != "name":
        (level, text), = found.remarks()
        assert level == logging.WARNING and "has no names of classes, so they are matched by their" in text


@pytest.mark.parametrize("theirs", [{3: "mouse", 7: "rat"}, {0: "class_0", 1: "class_1", 2: "class_2"}])
def test_other_classes_are_refused_with_both_lists(theirs):
    with pytest.raises(InputError) as caught:
        match(theirs, CAT_DOG)
    for part in ("val.json: none of its classes is one of the label map's", f"{next(iter(theirs.values()))!r}", "'cat' (id 3)"):
        assert part in str(caught.value)
    assert match(theirs, CAT_DOG, used=[]).labels == {}  # nothing there to get wrong


def test_two_label_maps_side_by_side():
    sides = {"there": "the checkpoint", "here": "the data set"}
    assert differences(CAT_DOG, LabelMap((0, 9), ("Cat", "dog")), **sides) == ""
    assert differences(CAT_DOG, LabelMap((1, 2, 3), ("bird", "cat", "owl")), **sides) == (
        "the checkpoint has 2 classes, 'cat' (id 3), 'dog' (id 7); the data set has 3 classes, 'bird' (id 1), 'cat' (id 2), "
        "'owl' (id 3); only in the checkpoint: 'dog' (id 7); only in the data set: 'bird' (id 1), 'owl' (id 3)")
    for other in (LabelMap((1, 2), ("dog", "cat")), LabelMap((3, 7), ("cat", "dog"), raw=True)):
        assert "the same names stand at other labels" in differences(CAT_DOG, other, **sides)


def test_messages_stay_short():
    many = {id_: f"thing number {id_} " + "x" * 5000 for id_ in range(900)}
    with pytest.raises(InputError) as caught:
        match(many, CAT_DOG)
    assert "(900 in all)" in str(caught.value) and len(str(caught.value)) < 3000


def test_official_ids_of_coco():
    raw = LabelMap(tuple(COCO_CLASSES), tuple(COCO_CLASSES.values()), raw=True)
    contiguous = dict(enumerate(COCO_CLASSES.values()))
    assert list(match(contiguous, raw).labels.values()) == list(COCO_CLASSES)
    assert match({0: "person", 1: "unheard-of"}, raw).labels == {0: 1}
    assert match({number: str(number) for number in range(80)}, raw).labels[79] == 90  # YOLO without names: their order


def test_a_hundred_thousand_classes_take_no_time():
    rows = [Category(id_, f"name {id_}", f"group {id_ % 7}") for id_ in range(100_000)]
    label_map = LabelMap.from_categories(rows, range(100_000))
    assert match_classes(rows, range(100_000), label_map, source="x").labels[99_999] == 99_999


# the same through the public way to a data set


def renumbered(content, ids, names=None):
    """The content with other category ids, and maybe other names, in the order of the ids 3 and 7."""
    old = [category["id"] for category in content["categories"]]
    content["categories"] = [{"id": new, "name": name} for new, name in zip(ids, names or ("cat", "dog"))]
    for row in content["annotations"]:
        row["category_id"] = ids[old.index(row["category_id"])]
    return content


def labels_of(dataset):
    return [dataset[index][1]["labels"].tolist() for index in range(len(dataset))]


def test_evaluation_of_the_same_data_under_other_ids(write_roboflow, coco_content, caplog):
    """Every number was -1 with exit code 0."""
    folder = write_roboflow(train=coco_content(), valid=coco_content())
    expected = labels_of(open_dataset(folder, "val", training=False, label_map=CAT_DOG, **SIZE))
    write_roboflow(valid=renumbered(coco_content(), (101, 102)))
    with caplog.at_level(logging.INFO):
        found = open_dataset(folder, "val", training=False, label_map=CAT_DOG, **SIZE)
    assert labels_of(found) == expected and found.label_map == CAT_DOG
    assert caplog.text.count("the names decide: 'cat' (id 101) is 'cat' (id 3), 'dog' (id 102) is 'dog' (id 7)") == 1


def test_splits_that_number_their_classes_differently(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content(), valid=renumbered(coco_content(), (7, 3)))
    train, val = (open_dataset(folder, split, training=False, **SIZE) for split in ("train", "val"))
    assert labels_of(train) == labels_of(val)


def test_classes_that_the_label_map_lacks_are_left_out_with_a_word(write_roboflow, coco_content, caplog):
    folder = write_roboflow(train=coco_content(), valid=renumbered(coco_content(), (3, 7), ("kitten", "dog")))
    val = open_dataset(folder, "val", training=False, **SIZE)
    assert (val.num_boxes, val.report["unmapped"]) == (2, 5)
    assert "boxes of classes that the label map does not have are left out: 'kitten' (id 3)" in caplog.text


def test_grouping_entries_do_not_count(write_roboflow, coco_content):
    content = renumbered(coco_content(), (1, 2), ("0", "1"))
    content["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"},
                             *({**category, "supercategory": "pets"} for category in content["categories"])]
    val = open_dataset(write_roboflow(valid=content), "val", training=False, label_map=LabelMap((0, 1), ("cat", "dog")), **SIZE)
    assert val.num_boxes == 7 and val.report["unmapped"] == 0


def test_yolo_names_that_stand_twice(tmp_path, write_picture):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        write_picture(tmp_path / split / "images" / "1.png", (20, 20))
        (tmp_path / split / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "train/images", "val": "val/images", "names": ["cat", "cat"]}))
    for split in ("train", "val"):
        dataset = open_dataset(tmp_path, split, training=split == "train", **SIZE)
        assert dataset.label_map.names == ["cat (id 0)", "cat (id 1)"] and labels_of(dataset) == [[0, 1]]
        assert json.loads(json.dumps(dataset.label_map.to_dict()))["kind"] == "contiguous"
