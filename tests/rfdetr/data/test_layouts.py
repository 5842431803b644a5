"""Layouts of common exports are recognised by looking, one file is divided by a rule, and a refusal shows the way out."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rfdetr.data import available_splits, detect_format, open_dataset, read_label_map
from rfdetr.data.formats import read_split
from rfdetr.datacheck import check_dataset
from rfdetr.errors import InputError


@pytest.fixture
def write(tmp_path):
    """`write({JSON file: {listed name: file of the image}})` writes a data set and returns its folder."""
    def make(files: dict[str, dict[str, str]]) -> Path:
        folder = tmp_path / "data"
        for number, (file, names) in enumerate(files.items()):
            images = [{"id": place, "file_name": name, "width": 40, "height": 30} for place, name in enumerate(names)]
            boxes = [{"id": place, "image_id": place, "category_id": 1, "bbox": [2, 3, 20, 10]} for place in range(len(names))]
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            content = {"info": {}, "images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": boxes}
            (folder / file).write_text(json.dumps(content, indent=number or None))
            for place, path in enumerate(names.values()):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng(100 * number + place).integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / path)
        return folder
    return make


def some(pattern: str, listed: str = "{}.png", count: int = 12) -> dict[str, str]:
    return {listed.format(number): pattern.format(number) for number in range(count)}


ONE_FILE = {
    "CVAT": {"annotations/instances_default.json": some("images/default/{}.png")},
    "CVAT, flat": {"annotations/instances_default.json": some("images/{}.png")},
    "CVAT, images beside": {"annotations/instances_default.json": some("{}.png")},
    "Label Studio": {"result.json": some("images/{}.png", "images/{}.png")},
    "Label Studio on Windows": {"result.json": some("images/{}.png", "images\\{}.png")},
    "Label Studio, older": {"result.json": some("images/a{}.png", "../../label-studio/media/upload/1/a{}.png")},
    "FiftyOne": {"labels.json": some("data/{}.png")},
    "labelme2coco": {"annotations.json": some("JPEGImages/{}.png", "JPEGImages/{}.png")},
    "supervision": {"annotations.json": some("images/{}.png")},
    "supervision, beside": {"annotations.json": some("{}.png")},
    "whole paths of another machine": {"coco.json": some("pictures/{}.png", "/home/x/data/{}.png")},
    "Roboflow, one folder": {"_annotations.coco.json": some("{}.png")},
    "cameras": {"labels/all.json": {f"cam{n % 2}/{n // 2}.png": f"frames/cam{n % 2}/{n // 2}.png" for n in range(12)}},
}
NAMED = {
    "annotations/train.json": {"annotations/{}.json": "images/{}/"}, "beside": {"annotations/{}.json": "{}/"},
    "supervision": {"{}/annotations.json": "{}/"}, "supervision, images": {"{}/annotations.json": "{}/images/"},
    "files above": {"{}.json": "{}/"}, "CVAT subsets": {"annotations/instances_{}.json": "images/{}/"},
    "FiftyOne": {"{}/labels.json": "{}/data/"}, "one folder": {"{}.json": "images/{}_"},
    "Roboflow": {"{}/_annotations.coco.json": "{}/"},
}


@pytest.mark.parametrize("layout", ONE_FILE)
def test_one_file_is_found_and_divided(write, layout, caplog):
    folder = write(ONE_FILE[layout])
    assert detect_format(folder) == detect_format(folder, "coco") == "coco" and available_splits(folder) == ("train", "val")
    check = check_dataset(folder, input_size=(32, 32))
    assert {found.name for found in check.findings if found.kind.severity == "error"} <= {"identical_to_train"}
    counts = [len(check.splits[split].raw.file_names) for split in ("train", "val")]
    assert sum(counts) == 12 and min(counts) > 0
    with caplog.at_level(logging.INFO):
        train, val = (open_dataset(folder, split, training=False, image_size=(32, 32)) for split in ("train", "val"))
    assert [train.num_images, val.num_images] == counts and "is divided: of 12 images" in caplog.text
    assert {train.image_path(0).parent.name} <= {path.parent.name for path in folder.rglob("*.png")} and val[0][0].shape[0] == 3


@pytest.mark.parametrize("words", [("train", "val"), ("Train", "Validation"), ("training", "valid"), ("train2017", "val2017")])
@pytest.mark.parametrize("layout", NAMED)
def test_files_that_name_their_splits(write, layout, words):
    (file, images), = NAMED[layout].items()
    prefix = images.rpartition("/")[2]
    folder = write({file.format(word): some(images.format(word) + "{}.png", prefix.format(word) + "{}.png") for word in words})
    assert available_splits(folder) == ("train", "val")
    for split, word in zip(("train", "val"), words):
        raw = read_split(folder, split)
        assert len(raw.file_names) == 12 and word in str(raw.source)
        assert all((raw.image_root / name).is_file() for name in raw.file_names)
        assert word in str(raw.image_root / raw.file_names[0])
    assert read_label_map(folder).names == ["cat"]


def test_the_division_belongs_to_the_names(write):
    def val_of(count: int, val_fraction: float = 0.1, order: int = 1) -> set[str]:
        names = dict(list(some("images/{}.png", count=count).items())[::order])
        folder = write({"result.json": names})
        parts = [set(read_split(folder, split, val_fraction=val_fraction).file_names) for split in ("train", "val")]
        assert parts[0] | parts[1] == set(names) and not parts[0] & parts[1]
        return parts[1]

    few, many = val_of(40), val_of(60)
    assert few == {name for name in many if int(name.split(".")[0]) < 40} == val_of(40, order=-1) and 1 <= len(few) <= 10
    assert len(val_of(40, 0.5)) > 12 and len(val_of(2, 1e-9)) == 1 and len(val_of(2, 1 - 1e-9)) == 1
    for wrong in (0, 1, -1, float("nan")):
        with pytest.raises(InputError, match="data.val_fraction: .* between 0 and 1"):
            val_of(3, wrong)
    with pytest.raises(InputError, match="lists 1 images, which cannot be divided"):
        val_of(1)


@pytest.mark.parametrize("files, example", [
    ({"annotations/batch_1.json": some("images/{}.png"), "annotations/batch_2.json": some("images/{}.png")},
     {"train": ("annotations/batch_1.json", "images"), "val": ("annotations/batch_2.json", "images")}),
    ({"train.json": some("a/{}.png"), "train_small.json": some("a/{}.png"), "val.json": some("b/{}.png", "v{}.png")},
     {"train": ("train.json", "a"), "val": ("val.json", "FOLDER_OF_ITS_IMAGES"), "test": ("train_small.json", "a")}),
])
def test_the_way_out_is_made_of_the_files_that_are_there(write, files, example):
    folder = write(files)
    with pytest.raises(InputError, match="data.splits") as caught:
        check_dataset(folder, input_size=(32, 32))
    message = str(caught.value)
    assert "\n" not in message and "a layout that does not say which splits" in message
    splits = yaml.safe_load(message.partition("for example ")[2])["data.splits"]
    assert {split: (paths["annotations"], paths["images"]) for split, paths in splits.items()} == example
    if "FOLDER" not in message:
        assert available_splits(folder, paths=splits) == ("train", "val")


def test_no_coco_files(write, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.json").write_text('{"categories": [], "info": {}}')
    (tmp_path / "x" / "empty.json").write_text("")
    with pytest.raises(InputError, match="no data set found"):
        detect_format(tmp_path / "x")


def test_data_yaml_stands_for_its_folder(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / split / "1.png")
        (tmp_path / split / "1.txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: train\nval: val\n")
    file = tmp_path / "data.yaml"
    assert detect_format(file) == "yolo" and available_splits(str(file)) == ("train", "val")
    assert open_dataset(file, "train", training=True, image_size=(32, 32)).num_images == 1
    assert set(check_dataset(file, input_size=(32, 32)).splits) == {"train", "val"}
    with pytest.raises(InputError, match="is a file, not a folder"):
        detect_format(tmp_path / "train" / "1.txt")
