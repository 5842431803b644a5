"""Opening data sets: formats, splits, label maps, dirt, and the message for everything that can be wrong."""

import json
import logging
import re
import shutil

import numpy as np
import pytest

from rfdetr.data import LabelMap, available_splits, detect_format, open_dataset
from rfdetr.errors import InputError

SIZE = {"image_size": (32, 32)}


def open_train(folder, **options):
    return open_dataset(folder, "train", training=True, **SIZE, **options)


def open_val(folder, **options):
    return open_dataset(folder, "val", training=False, **SIZE, **options)


@pytest.fixture
def write_coco(tmp_path, write_picture):
    """`write_coco(train2017=content)` writes COCO's own layout."""
    def write(images_below: str = ".", **splits):
        for name, content in splits.items():
            (tmp_path / "coco" / "annotations").mkdir(parents=True, exist_ok=True)
            (tmp_path / "coco" / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
            folder = tmp_path / "coco" / images_below / name
            folder.mkdir(parents=True)
            for image in content["images"]:
                write_picture(folder / image["file_name"], (image["height"], image["width"]))
        return tmp_path / "coco"
    return write


def test_roboflow_layout(write_roboflow, coco_content, class_counts):
    folder = write_roboflow(train=coco_content(), valid=coco_content(3))
    assert detect_format(folder) == "roboflow" and available_splits(folder) == ("train", "val")
    train, val = open_train(folder), open_val(folder)
    assert (train.split, train.num_images, train.num_boxes) == ("train", 6, 6)
    assert (val.num_images, val.num_boxes, val.label_map) == (3, 4, train.label_map)  # 3 boxes and the crowd
    assert train.label_map.names == ["cat", "dog"] and class_counts(train) == {"cat": 4, "dog": 2}
    assert train.image_path(2) == folder / "train" / "picture_2.png"
    assert [len(train[index][1]["boxes"]) for index in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("images_below", [".", "images"])
def test_coco_layout(write_coco, coco_content, images_below):
    folder = write_coco(images_below, train2017=coco_content(), val2017=coco_content(3))
    assert detect_format(folder) == "coco" and available_splits(folder) == ("train", "val")
    assert open_train(folder)[2][1]["image_id"].tolist() == [12]
    with pytest.raises(InputError, match=r"has no test split \(found: train in .*train2017, val in .*val2017\)"):
        open_dataset(folder, "test", training=False, **SIZE)


def test_raw_coco_ids(write_coco, coco_content):
    dataset = open_train(write_coco(train2017=coco_content()), label_map="coco")
    assert dataset.label_map.raw and dataset[2][1]["labels"].tolist() == [3, 7]


def test_other_splits_use_the_train_map(write_roboflow, coco_content):
    train, val = coco_content(), coco_content(3)
    val["categories"] = [val["categories"][1], {"id": 1, "name": "new", "supercategory": "none"}, val["categories"][0]]
    dataset = open_val(write_roboflow(train=train, valid=val))
    assert dataset.label_map.category_ids == (3, 7) and dataset[2][1]["labels"].tolist() == [0, 1]


def test_class_that_only_validation_has(write_roboflow, coco_content, caplog):
    train, val = coco_content(), coco_content(3)
    train["annotations"] = [row for row in train["annotations"] if row["category_id"] == 3]
    val["categories"].append({"id": 8, "name": "bird"})
    val["annotations"][0]["category_id"] = 8
    folder = write_roboflow(train=train, valid=val)
    train_set = open_train(folder)
    val_set = open_val(folder, label_map=train_set.label_map)  # that "dog" is never trained is for the check to say
    assert "'bird' (id 8)" in caplog.text and val_set.report["unmapped"] == 1


def test_split_alone_needs_a_label_map(write_roboflow, coco_content):
    folder = write_roboflow(valid=coco_content())
    with pytest.raises(InputError, match="label map of the checkpoint"):
        open_val(folder)
    given = LabelMap((3, 7), ("cat", "dog"))
    assert open_val(folder, label_map=given).label_map is given


def test_label_map_of_a_folder(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content())
    assert open_train(folder, label_map="coco").label_map.raw
    with pytest.raises(InputError, match="'contiguous' is unknown"):
        open_train(folder, label_map="contiguous")


def test_dirt_is_cleaned_and_reported_once(write_roboflow, coco_content, caplog):
    content = coco_content(3)
    def box(*numbers):
        return {"id": 50, "image_id": 10, "category_id": 3, "bbox": list(numbers), "area": 5.0}
    content["annotations"] += [box(-5, 3, 10, 10), box(70, 50, 99, 99), box(3, 3, 0, 4), box(3, 3, 4, -1), box(90, 3, 4, 4),
                               box(float("nan"), 1, 4, 4), box(0, 0, 80, 60)]
    with caplog.at_level(logging.INFO):
        dataset = open_train(write_roboflow(train=content))
    lines = [record.getMessage() for record in caplog.records if "split" in record.getMessage()]
    assert len(lines) == 1 and "3 boxes without an area dropped" in lines[0] and "1 crowd regions left out" in lines[0]
    expected = {"images": 3, "background_images": 0, "boxes": 6, "crowds": 0, "crowds_dropped": 1, "unmapped": 0, "not_finite": 1,
                "zero_size": 3, "unmatchable": 0, "clamped": 2}
    assert dataset.report == expected
    _, target = dataset[0]
    boxes = target["boxes"].numpy() * (80, 60, 80, 60)
    np.testing.assert_allclose(boxes, [[2.5, 8, 5, 10], [75, 55, 10, 10], [40, 30, 80, 60]], atol=1e-4)
    assert target["area"].tolist() == [5, 5, 5]  # as annotated


def test_area_that_is_missing_is_that_of_the_box(write_roboflow, coco_content):
    content = coco_content(3)
    del content["annotations"][0]["area"]
    assert open_train(write_roboflow(train=content))[1][1]["area"].tolist() == [320]


def test_crowds_are_kept_for_evaluation_only(write_roboflow, coco_content):
    folder = write_roboflow(train=coco_content(), valid=coco_content())
    assert open_train(folder)[1][1]["iscrowd"].tolist() == [0]
    assert open_val(folder)[1][1]["iscrowd"].tolist() == [0, 1]


def test_images_are_in_the_order_of_their_ids(write_roboflow, coco_content):
    content = coco_content()
    expected = [open_train(write_roboflow(train=content))[i][1]["boxes"].tolist() for i in range(6)]
    content["images"].reverse()
    content["annotations"].reverse()
    dataset = open_train(write_roboflow(train=content))
    assert [dataset.image_id(i) for i in range(6)] == list(range(10, 16))
    assert [sorted(dataset[i][1]["boxes"].tolist()) for i in range(6)] == [sorted(boxes) for boxes in expected]


BAD_CONTENT = {
    "no images list": (lambda c: c.pop("images"), "the list 'images' is missing"),
    "no annotations list": (lambda c: c.pop("annotations"), "the list 'annotations' is missing"),
    "list of numbers": (lambda c: c.update(annotations=[1, 2]), "2 entries that are not objects .*entry 0 of annotations is 1"),
    "no list": (lambda c: c.update(annotations={"1": {}}), "'annotations' must be a list of objects"),
    "no usable image": (lambda c: [image.update(id="x") for image in c["images"]], "none of its images .*first has 'id' 'x'"),
    "no usable category": (lambda c: [row.update(id=None) for row in c["categories"]], "none of its categories has an id"),
    "no images": (lambda c: c.update(images=[], annotations=[]), "lists no images"),
    "no categories": (lambda c: c.update(categories=[]), "lists no categories"),
    "no width": (lambda c: c["images"][1].pop("width"), "1 image entries without .*image with id 11 has no 'width'"),
    "no file name": (lambda c: c["images"][0].pop("file_name"), "image with id 10 has no 'file_name'"),
    "no image id": (lambda c: c["images"][2].pop("id"), "entry 2 of images has no 'id'"),
    "height 0": (lambda c: c["images"][1].update(height=0), "image with id 11 has 'height' 0"),
    "image id twice": (lambda c: c["images"][1].update(id=10), r"image with id 10 \(picture_1.png\)"),
    "category twice": (lambda c: c["categories"][1].update(id=3), r"category with id 3 \('dog'\)"),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), "annotation with id 0 has no 'bbox'"),
    "three numbers": (lambda c: c["annotations"][1].update(bbox=[1, 2, 3]), r"four numbers.*with id 1 has 'bbox' \[1, 2, 3\]"),
    "text for a number": (lambda c: c["annotations"][1].update(bbox=[1, 2, 3, "x"]), r"has 'bbox' \[1, 2, 3, 'x'\]"),
    "text for an id": (lambda c: c["annotations"][1].update(image_id="x1"), "with id 1 has 'image_id' 'x1'"),
    "unknown category": (lambda c: c["annotations"][1].update(category_id=5), "does not list .*with id 1 has 'category_id' 5"),
    "unknown image": (lambda c: c["annotations"][1].update(image_id=99), "does not list .*with id 1 has 'image_id' 99"),
    "no boxes": (lambda c: c.update(annotations=c["annotations"][-1:]), "train split has no boxes to learn from .*1 crowd"),
}


@pytest.mark.parametrize("name", BAD_CONTENT)
def test_wrong_content_is_named(write_roboflow, coco_content, name):
    spoil, message = BAD_CONTENT[name]
    content = coco_content()
    folder = write_roboflow(train=content)
    spoil(content)
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        open_train(folder)
    assert "train/_annotations.coco.json" in str(caught.value) and str(caught.value).count("\n") <= 2


@pytest.mark.parametrize("text, message", [
    ('{"images": [\n{"id": 1,}', "not valid JSON at line 2, column"), ("", "not valid JSON at line 1, column 1"),
    ("[]", "holds a list, but COCO annotations are an object"), ("NaN", "holds a float"),
    ("[" * 100_000, "not JSON that can be read"), (f'{{"images": {"7" * 5000}}}', "not JSON that can be read .*digits"),
    ('{"images": [], "images": []}', "'images' stands there twice"),
])
def test_wrong_json_is_named(write_roboflow, coco_content, text, message):
    folder = write_roboflow(train=coco_content())
    (folder / "train" / "_annotations.coco.json").write_text(text)
    with pytest.raises(InputError, match=message):
        open_train(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-be"])
def test_other_encodings_of_json_are_read(write_roboflow, coco_content, encoding):
    folder = write_roboflow(train=coco_content())
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(coco_content()), encoding=encoding)
    assert open_train(folder).num_boxes == 6


def test_missing_folders_are_named(write_coco, coco_content, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"nowhere: there is no such folder; pass .* \(--data\.dataset_dir, or"):
        open_train(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    place = re.escape(str(tmp_path))
    with pytest.raises(InputError, match=rf"^data/nowhere: there is no such folder, looked for from {place}; pass where"):
        open_train("data/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no data set found. Expected coco: .*; or roboflow: .*The folder holds: nothing"):
        open_train(tmp_path / "empty")
    folder = write_coco(train2017=coco_content())
    with pytest.raises(InputError, match="no data set found. Expected roboflow"):
        open_train(folder, format="roboflow")
    with pytest.raises(InputError, match="has no val split"):
        open_val(folder)
    with pytest.raises(InputError, match="split 'valid' is unknown"):
        open_dataset(folder, "valid", training=False, **SIZE)
    with pytest.raises(InputError, match="data.format: 'tfrecord' is unknown"):
        open_train(folder, format="tfrecord")
    shutil.rmtree(folder / "train2017")
    with pytest.raises(InputError, match="train2017: there is no such folder; the images of"):
        open_train(folder)


def test_free_paths_of_coco_files(tmp_path, coco_content, write_picture):
    for split, number in (("a", 6), ("b", 3)):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        content = coco_content(number)
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            write_picture(tmp_path / "pictures" / split / image["file_name"], (60, 80))
    paths = {"train": {"annotations": "a.json", "images": "pictures/a"},
             "val": {"annotations": str(tmp_path / "b.json"), "images": "pictures/b"}}
    assert available_splits(tmp_path, paths=paths) == ("train", "val")
    train, val = open_train(tmp_path, paths=paths), open_val(tmp_path, paths=paths)
    assert (train.num_images, val.num_images, val.image_path(0)) == (6, 3, tmp_path / "pictures" / "b" / "picture_0.png")
    assert val.label_map == train.label_map
    for wrong, message in (({"valid": paths["val"]}, "valid: .* is not possible; it must give for train, val, test"),
                           ({"train": {"annotation": "a.json", "images": "x"}}, "the two paths annotations .* and images"),
                           ({"train": {**paths["train"], "images": "x"}}, "x: there is no such folder; the images of"),
                           ({"train": {**paths["train"], "annotations": "c.json"}}, "c.json: there is no such annotation file"),
                           ({"val": paths["val"]}, "has no train split")):
        with pytest.raises(InputError, match=message):
            open_train(tmp_path, paths=wrong)
    with pytest.raises(InputError, match="data.splits: names files of a COCO data set on disk, not of format 'roboflow'"):
        open_train(tmp_path, paths=paths, format="roboflow")


def test_format_is_named_in_the_log(write_roboflow, coco_content, caplog):
    with caplog.at_level(logging.INFO):
        open_train(write_roboflow(train=coco_content()))
    assert "_annotations.coco.json, format roboflow)" in caplog.text


@pytest.mark.parametrize("ids", [(0, 1), (1, 2), (3, 70)])
@pytest.mark.parametrize("is_grouped, root_has_box", [(False, False), (True, False), (True, True)])
def test_category_sets(write_roboflow, coco_content, ids, is_grouped, root_has_box):
    """0-based, 1-based and sparse ids, alone and below a root category, which is a class only if it has boxes."""
    content = coco_content()
    group = "animal" if is_grouped else "none"
    content["categories"] = [{"id": id_ + is_grouped, "name": name, "supercategory": group}
                             for id_, name in zip(ids, ("cat", "dog"))]
    for row in content["annotations"]:
        row["category_id"] = ids[(3, 7).index(row["category_id"])] + is_grouped
    if is_grouped:
        content["categories"].insert(0, {"id": 0, "name": "animal", "supercategory": "none"})
    if root_has_box:
        content["annotations"][0]["category_id"] = 0
    dataset = open_train(write_roboflow(train=content))
    shift = int(root_has_box)
    assert dataset.label_map.names == ["animal", "cat", "dog"][1 - shift:]
    assert dataset.label_map.category_ids == (*[0] * shift, *(id_ + is_grouped for id_ in ids))
    assert dataset[2][1]["labels"].tolist() == [shift, shift + 1]
    assert dataset[1][1]["labels"].tolist() == [0]


def test_split_without_boxes_can_be_evaluated_but_is_reported(write_roboflow, coco_content, caplog):
    empty = coco_content(1)
    empty["annotations"] = []
    dataset = open_val(write_roboflow(train=coco_content(), valid=empty))
    assert dataset[0][1]["boxes"].shape == (0, 4) and "has no boxes, so nothing can be measured" in caplog.text
    crowds = coco_content()
    crowds["annotations"] = crowds["annotations"][-1:]
    open_val(write_roboflow(train=coco_content(), valid=crowds))
    assert "has no boxes but crowd regions, so nothing can be measured" in caplog.text


def test_masks_need_segmentations(write_roboflow, coco_content, caplog):
    content = coco_content()
    content["annotations"][0]["segmentation"] = []
    assert open_train(write_roboflow(train=content), with_masks=True).report["without_mask"] == 1
    assert "1 objects without a mask" in caplog.text
    for row in content["annotations"]:
        row.pop("segmentation")
    with pytest.raises(InputError, match="needs masks, but no annotation has a segmentation"):
        open_train(write_roboflow(train=content), with_masks=True)


def test_bccd(real_data):
    """The counts of the data set's README, its zero-size box left out of training, and Roboflow's root category not a class."""
    folder = real_data / "bccd"
    train = open_train(folder)
    assert train.label_map.names == ["Platelets", "RBC", "WBC"] and train.label_map.category_ids == (1, 2, 3)
    assert (train.num_images, train.num_boxes, train.report["zero_size"]) == (205, 209 + 2381 + 214, 1)
    val = open_val(folder, label_map=train.label_map)
    assert (val.num_images, val.num_boxes, val.report["unmatchable"]) == (87, 83 + 968 + 87, 1)
    test = open_dataset(folder, "test", training=False, label_map=train.label_map, **SIZE)
    assert (test.num_images, test.num_boxes, test.report["clamped"]) == (72, 945, 0)


def test_coco_real(real_data):
    folder = real_data / "coco_real"
    train = open_train(folder)
    assert (train.num_images, train.num_boxes, train.report["crowds_dropped"]) == (104, 918 - 9, 9)
    assert train.label_map.num_classes == 80 and train.report["background_images"] == 2
    val = open_val(folder, label_map=train.label_map, with_masks=True)
    assert (val.num_images, val.num_boxes, val.report["crowds"], val.report["without_mask"]) == (86, 951, 12, 0)
    raw = open_val(folder, label_map="coco")
    assert raw.label_map.num_classes == 90 and raw.label_map.names[90] == "toothbrush"
