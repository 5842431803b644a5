"""YOLO data sets: layouts, targets equal to COCO's, every kind of dirt in one message, and the real cones."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rfdetr.data import available_splits, detect_format, open_dataset
from rfdetr.data.findings import Findings
from rfdetr.data.formats import read_split
from rfdetr.data.yolo_labels import LabelFile, parse_labels
from rfdetr.errors import InputError

GOLDENS = json.loads((Path(__file__).parents[2] / "goldens" / "training" / "transforms.json").read_text())["yolo_label_lines"]
BOX = "0 0.5 0.5 0.2 0.4"


@pytest.fixture
def write_yolo(tmp_path, write_picture):
    """`write_yolo({"train/images/a.jpg": label text or None}, data.yaml as dict)` writes a data set and returns its folder."""
    def write(images: dict[str, str | bytes | None], content: dict | None = None) -> Path:
        folder = tmp_path / "yolo"
        for index, (name, label) in enumerate(images.items()):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_picture(path, (60, 80), seed=index)
            if label is not None:
                label_path = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
                label_path.parent.mkdir(parents=True, exist_ok=True)
                label_path.write_bytes(label if isinstance(label, bytes) else label.encode())
        default = {"train": "train/images", "names": ["cat", "dog"]}
        (folder / "data.yaml").write_text(yaml.safe_dump(default if content is None else content))
        return folder
    return write


def open_train(folder, **options):
    return open_dataset(folder, "train", training=True, image_size=(32, 32), **options)


def found(folder, split="train") -> dict[str, tuple[int, list[str]]]:
    """Count and examples of each finding."""
    findings = Findings()
    read_split(folder, split, findings=findings)
    return {finding.name: (finding.count, finding.examples) for finding in findings}


TWO = {"train/images/a.png": BOX, "train/images/b.png": None, "valid/images/c.png": "1 0.5 0.5 1 1"}
LAYOUTS = {
    "relative": {"train": "train/images", "val": "valid/images"},
    "roboflow": {"train": "../train/images", "val": "../valid/images"},
    "path": {"path": "..", "train": "yolo/train/images", "val": "yolo/valid/images"},
    "path of another machine": {"path": "/somewhere/else", "train": "train/images", "val": "valid/images"},
    "folder above images": {"train": "train", "valid": "valid"},
    "lists of folders": {"train": ["train/images"], "val": ["valid/images"]},
    "conventional folders": {},
    "text files": {"train": "train.txt", "val": "val.txt"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(write_yolo, layout, class_counts):
    folder = write_yolo(TWO, {"names": ["cat", "dog"], "nc": 2, **LAYOUTS[layout]})
    (folder / "train.txt").write_text("./train/images/a.png\n\ntrain/images/b.png\n")
    (folder / "val.txt").write_text(f"{folder}/valid/images/c.png\r\n")
    assert detect_format(folder) == "yolo" and available_splits(folder) == ("train", "val")
    train = open_train(folder)
    assert train.image_path(0) == folder / "train/images/a.png" and [train.image_id(i) for i in range(2)] == [0, 1]
    np.testing.assert_allclose(train[0][1]["boxes"], [[0.5, 0.5, 0.2, 0.4]], atol=1e-6)
    assert [len(train[index][1]["boxes"]) for index in (0, 1)] == [1, 0]
    assert train[0][1]["area"].tolist() == [pytest.approx(16 * 24)]
    val = open_dataset(folder, "val", training=False, image_size=(32, 32), label_map=train.label_map)
    assert class_counts(val) == {"cat": 0, "dog": 1}


def test_own_folder_comes_before_a_neighbour(write_yolo, write_picture):
    folder = write_yolo(TWO, {"names": ["cat", "dog"], "train": "../train/images"})
    (folder.parent / "train" / "images").mkdir(parents=True)
    write_picture(folder.parent / "train" / "images" / "z.png", (60, 80))
    assert open_train(folder).num_images == 2


def test_labels_beside_the_images_and_in_folders_below(write_yolo):
    folder = write_yolo({"pictures/a.png": BOX, "pictures/more/b.JPG": BOX, "pictures/notes.png": None},
                        {"train": "pictures", "names": ["cat"]})
    (folder / "pictures" / "classes.txt").write_text("cat\n")
    assert [len(target["boxes"]) for _, target in map(open_train(folder).__getitem__, range(3))] == [1, 1, 0]
    assert set(found(folder)) == {"background_image"}


@pytest.mark.parametrize("names, ids, expected", [
    (["cat", "dog"], (0, 1), ("cat", "dog")), ({0: "cat", 1: "dog"}, (0, 1), ("cat", "dog")),
    ({1: "cat", 2: "dog"}, (1, 2), ("cat", "dog")), ({3: "cat", 70: "dog"}, (3, 70), ("cat", "dog")),
    (["animal", "cat", "dog"], (0, 1, 2), ("animal", "cat", "dog")),
])
def test_all_classes_are_kept_annotated_or_not(write_yolo, names, ids, expected):
    text = f"{ids[-1]} 0.5 0.5 0.2 0.2\n{ids[-1]}.0 0.25 0.5 0.2 0.2"
    dataset = open_train(write_yolo({"train/images/a.png": text}, {"train": "train/images", "names": names}))
    assert dataset.label_map.category_ids == ids and dataset.label_map.category_names == expected
    assert dataset[0][1]["labels"].tolist() == [len(ids) - 1] * 2


@pytest.mark.parametrize("case", [case for case in GOLDENS if len(case["line"].split()) != 6], ids=lambda case: case["line"])
def test_label_line_golden(case):
    """The published reader clips polygons to the last pixel; ours to the edge of the picture, as COCO has it.

    It refuses boxes with a confidence behind them, which ours reads (test_yolo_kinds.py).
    """
    findings = Findings()
    labels = parse_labels([LabelFile(0, "a.txt", case["line"].encode())], range(case["num_classes"]), findings)
    errors = [finding for finding in findings if finding.kind.severity == "error"]
    assert bool(errors) == ("error" in case) == (not len(labels.boxes))
    if not errors:
        scale = np.array([case["width"], case["height"]])
        np.testing.assert_allclose(labels.boxes[0].reshape(2, 2) * scale, np.reshape(case["box"], (2, 2)), atol=1e-4)
        assert labels.class_ids.tolist() == [case["class_id"]]
        if labels.polygons[0] is not None:
            np.testing.assert_allclose(np.minimum(labels.polygons[0] * scale, scale - 1), case["polygon"], atol=1e-4)


def test_polygons_give_boxes_masks_and_areas(write_yolo):
    text = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n" + BOX
    dataset = open_train(write_yolo({"train/images/a.png": text}), with_masks=True)
    _, target = dataset[0]
    np.testing.assert_allclose(target["boxes"], [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.2, 0.4]], atol=1e-6)
    assert target["area"].tolist() == [pytest.approx(40 * 30), pytest.approx(16 * 24)]
    assert target["masks"].sum(dim=(1, 2)).tolist() == [40 * 30, 0] and dataset.report["without_mask"] == 1


def test_label_coordinates_are_those_of_the_turned_picture(write_yolo):
    folder = write_yolo({"train/images/a.jpg": BOX})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "train/images/a.jpg").save(folder / "train/images/a.jpg", exif=exif)
    image, target = open_train(folder)[0]
    assert target["orig_size"].tolist() == [80, 60]  # stored 60 high, 80 wide
    np.testing.assert_allclose(target["boxes"], [[0.5, 0.5, 0.2, 0.4]], atol=1e-6)


DIRT = {
    "class_out_of_range": ("2 0.5 0.5 0.1 0.1\n-1 0.5 0.5 0.1 0.1", 2), "class_not_whole": ("0.5 0.5 0.5 0.1 0.1", 1),
    "label_fields": ("0 0.5 0.5 0.1\n0 0.1 0.1 0.2 0.2 0.3 0.3 0.4\n0", 3),
    "label_comma": ("0 0,5 0,5 0,1 0,1\n0,0.5,0.5,0.1,0.1", 2),
    "label_not_a_number": ("0 0.5 nan 0.1 0.1\nx 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 1e999", 3),
    "pixel_coordinates": ("0 320 240 50 60", 1), "outside_picture": ("0 1.2 0.5 0.6 0.2\n1 -0.1 0.1 0.4 0.1 0.4 0.5", 2),
    "label_empty_line": ("\n  \n" + BOX + "\n\n", 3), "label_bom": ("\ufeff" + BOX, 1), "label_crlf": (BOX + "\r\n" + BOX, 1),
}


@pytest.mark.parametrize("name", DIRT)
def test_each_kind_of_dirt_in_labels_is_found_alone(write_yolo, name):
    text, count = DIRT[name]
    folder = write_yolo({"train/images/a.png": text, "train/images/b.png": BOX})
    assert {kind: number for kind, (number, _) in found(folder).items()} == {name: count}
    assert found(folder)[name][1][0].startswith("train/labels/a.txt")


def test_files_without_a_partner(write_yolo):
    folder = write_yolo({"train/images/a.png": BOX, "train/images/Street.png": None, "train/images/empty.png": ""})
    for name in ("gone", "street"):
        (folder / "train" / "labels" / f"{name}.txt").write_text(BOX)
    (folder / "train" / "labels" / "classes.txt").write_text("cat\ndog\n")
    (folder / "train" / "images" / "broken.png").write_bytes(b"broken")
    assert found(folder) == {
        "background_image": (2, ["train/images/Street.png", "train/images/broken.png"]),
        "label_without_image": (1, ["train/labels/gone.txt"]), "label_name_case": (1, ["train/labels/street.txt"]),
        "no_image_size": (1, [str(folder / "train/images/broken.png")]),
    }


def test_bad_image_can_be_skipped_before_and_during_training(write_yolo):
    folder = write_yolo({"train/images/a.png": BOX, "train/images/b.png": BOX})
    (folder / "train" / "images" / "b.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="1 images whose size cannot be read .*b.png"):
        open_train(folder)
    dataset = open_train(folder, on_bad_image="skip")
    assert dataset.num_images == 2 and "b.png" in dataset[1][1]["bad_image"]


def test_no_labels_at_all_is_an_error(write_yolo):
    with pytest.raises(InputError, match=r"folders of images without a single label file \(train/images \(its labels would be in "
                                         r"train/labels\)\); put the labels"):
        open_train(write_yolo({"train/images/a.png": None}))


@pytest.mark.parametrize("content, message", [
    ({"train": "train/images", "names": "cats.txt"}, "'names' must be a list of class names"),
    ({"train": "train/images", "names": ["cat"], "nc": 3}, "nc is 3, but there are 1 names"),
    ({"train": "elsewhere", "names": ["cat"]}, r"data.yaml: train: 'elsewhere' points nowhere \(looked at .*/elsewhere\)"),
    ({"train": ["train/images", "b"], "names": ["cat"]}, "1 paths of a split that do not exist .*'b' points nowhere"),
    ({"train": "train/labels", "names": ["cat"]}, "no images found; they must be .jpg"),
    ({"train": "train.txt", "names": ["cat"]}, r"1 listed images that do not exist \(train.txt:2: gone.jpg\)"),
    ({"path": "x", "train": None, "nc": 1, "val": "images"}, "has no train split"),
])
def test_wrong_data_yaml(write_yolo, content, message):
    folder = write_yolo({"train/images/a.png": BOX}, content)
    (folder / "train.txt").write_text("train/images/a.png\ngone.jpg\n")
    with pytest.raises(InputError, match=message):
        open_train(folder)


def test_broken_yaml_and_missing_names(write_yolo, caplog):
    folder = write_yolo({"train/images/a.png": BOX}, {"train": "train/images", "nc": 2})
    assert open_train(folder).label_map.names == ["class_0", "class_1"] and "2 classes without a name" in caplog.text
    (folder / "data.yaml").write_text("names: [cat\ntrain: x")
    with pytest.raises(InputError, match="data.yaml: not valid YAML .*line 2"):
        open_train(folder)


def test_broken_data_set_gives_one_message_a_kind(write_yolo, caplog):
    folder = write_yolo({
        "train/images/a.png": "7 0.5 0.5 0.1 0.1\n8 0.5 0.5 0.1 0.1\n", "train/images/b.png": "0 1.3 0.5 0.8 0.1\r\n\r\n" + BOX,
        "train/images/c.png": "\ufeff" + BOX, "train/images/d.png": "0 0,5 0,5 0,1 0,1", "train/images/e.png": "0 400 300 20 20",
    }, {"train": "train/images", "val": "../valid/images", "nc": 2, "names": ["cat", "dog"]})
    (folder / "train" / "labels" / "gone.txt").write_text(BOX)
    with caplog.at_level(logging.INFO), pytest.raises(InputError) as caught:
        open_train(folder)
    message = str(caught.value)
    head, *lines = message.split("\n")
    assert head == f"{folder}/data.yaml: the data set cannot be used as it is:"
    assert [line.split(":")[0].strip() for line in lines] == ["error"] * 3 + ["warning"] * 2 + ["info"] * 3
    assert "train: 2 label lines whose class id is not among the names of data.yaml (train/labels/a.txt:1: 7 0.5" in message
    assert "1 label lines with commas (train/labels/d.txt:1: 0 0,5" in message
    assert "1 label lines with numbers far outside of 0..1 (train/labels/e.txt:1: 0 400" in message
    assert "train/labels/gone.txt" in message and "b.txt:1: 0 1.3" in message
    assert not [record for record in caplog.records if record.levelno == logging.WARNING], "all is in the one message"
    assert {"label_bom", "label_crlf", "label_empty_line"} <= set(found(folder))
    with pytest.raises(InputError, match=r"data.yaml: val: '../valid/images' points nowhere \(looked at .*/yolo/valid/images, "):
        open_dataset(folder, "val", training=False, image_size=(32, 32))


def test_cones(real_data, class_counts):
    folder = real_data / "cones_yolo"
    assert detect_format(folder) == "yolo"
    train = open_train(folder)
    counts = {split: open_dataset(folder, split, training=False, image_size=(32, 32), label_map=train.label_map)
              for split in ("train", "val", "test")}
    assert {split: (data.num_images, *class_counts(data).values()) for split, data in counts.items()} == {
        "train": (220, 345, 177), "val": (124, 189, 111), "test": (63, 85, 50)}
    assert not any(found(folder, split) for split in ("train", "val", "test"))


def test_same_targets_as_the_coco_file_of_the_same_images(real_data, tmp_path):
    source = real_data / "coco_real"
    content = json.loads((source / "annotations" / "instances_val2014.json").read_text())
    names = [category["name"] for category in content["categories"]]
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "images", "names": names}))
    (tmp_path / "images").symlink_to(source / "val2014")
    (tmp_path / "labels").symlink_to(source / "val2014_yolo_labels")
    paths = {"train": {"annotations": "annotations/instances_val2014.json", "images": "val2014"}}
    coco, yolo = open_train(source, paths=paths), open_train(tmp_path)
    assert coco.num_images == yolo.num_images == 54 and coco.num_boxes == yolo.num_boxes == 461
    assert yolo.label_map.names == coco.label_map.names
    of_yolo = {yolo.image_path(index).name: index for index in range(54)}
    for index in range(54):
        expected, target = coco[index][1], yolo[of_yolo[coco.image_path(index).name]][1]
        rows = {}
        for name, found_target in (("coco", expected), ("yolo", target)):
            boxes = found_target["boxes"].numpy()
            rows[name] = np.concatenate([found_target["labels"].numpy()[:, None], boxes], axis=1)
        distances = np.abs(rows["coco"][:, None] - rows["yolo"][None]).max(axis=2)
        assert (distances.min(axis=0) < 2e-3).all() and (distances.min(axis=1) < 2e-3).all()
        assert expected["orig_size"].tolist() == target["orig_size"].tolist()


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_large_folders_are_fast(write_yolo):
    """10,000 images take a few seconds; here 2,000 links to one picture."""
    folder = write_yolo({"train/images/a.jpg": "\n".join([BOX] * 10)})
    for index in range(2000):
        os.link(folder / "train/images/a.jpg", folder / f"train/images/{index}.jpg")
        os.link(folder / "train/labels/a.txt", folder / f"train/labels/{index}.txt")
    dataset = open_train(folder)
    assert (dataset.num_images, dataset.num_boxes) == (2001, 20010) and dataset.image_path(2000).name == "a.jpg"
