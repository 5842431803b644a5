"""The list of all kinds of findings, and the report that gives each a line."""

import pytest

from rfdetr.data.findings import Kind
from rfdetr.datacheck import all_kinds, boxes, check_dataset, to_text


def test_every_kind_says_what_it_is():
    kinds = all_kinds()
    assert len(kinds) > 90 and {"bad_mask", "class_out_of_range", "duplicate", "missing_split"} <= set(kinds)
    for kind in kinds.values():
        assert isinstance(kind, Kind) and kind.text and kind.advice and kind.fix in ("leaves", "repairs", "drops")
        assert kind.severity in ("error", "warning", "info") and kind.group in ("files", "classes", "images", "boxes")


def test_two_kinds_of_one_name_are_refused(monkeypatch):
    monkeypatch.setitem(boxes.KINDS, "bad_mask", boxes.KINDS["tiny"])
    with pytest.raises(ValueError, match="another kind of finding called 'bad_mask'"):
        all_kinds()


def test_many_kinds_are_a_line_each_the_gravest_first(dataset):
    dataset.cat(1)["bbox"] = [1, 2]
    dataset.cat(2)["bbox"] = [10, 20, 0, 30]
    dataset.cat(3)["bbox"] = [300, 20, 40, 30]
    dataset.set_box(dataset.cat(4), [-5, 20, 40, 30])
    few = to_text(dataset.check())
    assert "> correct the file, or export the data set again; --fix leaves them out" in few
    dataset.cat(5)["iscrowd"] = "yes" * 99
    dataset.cat(6)["area"] = -1
    dataset.cat(7)["segmentation"] = dataset.cat(7)["segmentation"][0]
    lines = to_text(dataset.check()).splitlines()
    assert lines[2].startswith("ERRORS") and lines[6].startswith("WARNINGS")
    assert lines[3] == ("- train 1  annotations whose 'bbox' is not four numbers x, y, width, height: "
                        "annotation with id 1011 has 'bbox' [1, 2]")
    assert lines[4].startswith("* train 1  annotations whose 'iscrowd'") and lines[4].endswith("...")
    assert "--fix FOLDER repairs * and leaves out -" in "".join(lines) and len(lines) == 24 and max(map(len, lines[1:])) <= 120


def test_the_first_lines_are_about_whole_splits_and_about_what_there_is_most_of(dataset):
    for number in range(5):
        dataset.cat(number)["iscrowd"] = "yes"
    for number in range(5, 8):
        dataset.cat(number)["category_id"] = 77
    dataset.cat(9)["bbox"] = None
    for name, value in {"area": "x", "bbox": [10, 20, 0, 30]}.items():
        dataset.dog(8)[name] = value
    dataset.image(11)["file_name"] = "elsewhere.jpg"
    root = dataset.write()
    (root / "valid" / "_annotations.coco.json").write_text("{")
    lines = to_text(check_dataset(root, input_size=(160, 160))).splitlines()
    assert lines[2].startswith("ERRORS")
    assert "splits that cannot be read: valid/_annotations.coco.json: not valid JSON" in lines[3]
    assert [line[2:9] for line in lines[4:7]] == ["train 5", "train 3", "train 1"]
