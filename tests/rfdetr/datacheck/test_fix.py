"""The corrected copy of annotations: what is mended is gone, everything else stays, and the originals are not touched."""

import json

import pytest
import yaml

from rfdetr.data import open_dataset
from rfdetr.datacheck import check_dataset, write_fixed
from rfdetr.errors import InputError


def check_fixed(path, **options):
    data = yaml.safe_load(path.read_text())["data"]
    return check_dataset(data["dataset_dir"], format=data["format"], paths=data["splits"], input_size=(160, 160), **options)


def test_what_is_mended_is_not_found_again(dataset, found, tmp_path):
    dataset.cat(0)["bbox"] = [10, 20, 0, 30]
    dataset.set_box(dataset.cat(1), [-5, 20, 40, 30])
    dataset.cat(2)["bbox"] = [300, 20, 40, 30]
    dataset.set_box(dataset.dog(3), [12, 21, 40, 30])
    dataset.dog(3)["category_id"] = 1
    dataset.cat(4)["category_id"] = 77
    dataset.cat(5)["bbox"][0] = float("nan")
    dataset.cat(6)["segmentation"] = {"size": [1, 1], "counts": [1]}
    dataset.path("val", "val_1.jpg").unlink()
    dataset.path("val", "val_2.jpg").write_text("no image")
    dataset.set_box(dataset.cat(8), [20, 20, 4, 1])  # left to the user
    before = dataset.check()
    assert len(found(before)) == 11
    original = dataset.path("train", "_annotations.coco.json").read_bytes()
    path = write_fixed(before, tmp_path / "fixed")
    assert found(check_fixed(path)) == {("train", "speck"): 1, ("train", "few_objects"): 1, ("val", "unlisted_image"): 1}
    assert dataset.path("train", "_annotations.coco.json").read_bytes() == original
    fixed = json.loads((tmp_path / "fixed" / "train.json").read_text())
    cut = next(row for row in fixed["annotations"] if row["image_id"] == 101 and row["category_id"] == 1)
    assert (cut["bbox"], cut["area"]) == ([0, 20, 35, 30], 35 * 30)
    assert len(fixed["annotations"]) == 24 - 6 and fixed["categories"] == dataset.content["train"]["categories"]


def test_a_clean_data_set_stays_what_it_is(dataset, found, tmp_path):
    path = write_fixed(dataset.check(), tmp_path / "fixed")
    assert found(check_fixed(path)) == {}
    fixed = json.loads((tmp_path / "fixed" / "val.json").read_text())
    assert fixed["images"] == dataset.content["val"]["images"]
    without_id = [{**row, "id": 0} for row in fixed["annotations"]]
    assert without_id == [{**row, "id": 0} for row in dataset.content["val"]["annotations"]]


def test_the_copy_can_be_trained_on(real_data, tmp_path):
    """BCCD without its double boxes and those without an area."""
    write_fixed(check_dataset(real_data / "bccd", input_size=(64, 64)), tmp_path / "fixed")
    data = yaml.safe_load((tmp_path / "fixed" / "splits.yaml").read_text())["data"]
    train = open_dataset(data["dataset_dir"], "train", paths=data["splits"], image_size=(64, 64), training=True)
    assert (train.num_images, train.num_boxes) == (205, 2805 - 1 - 5)
    assert train[0][0].shape == (3, 64, 64)


def test_run_lengths_survive(real_data, found, tmp_path):
    paths = {split: {"annotations": f"{folder}/_annotations_rle.coco.json", "images": folder}
             for split, folder in (("train", "valid"), ("val", "test"))}
    before = check_dataset(real_data / "nuclei_dsb2018", paths=paths, input_size=(160, 160))
    assert found(check_fixed(write_fixed(before, tmp_path / "fixed"))) == found(before)


def test_yolo_labels_become_coco(found, picture, tmp_path):
    for split in ("train", "val"):
        for number in range(12):
            for kind in ("images", "labels"):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
            picture(tmp_path / split / "images" / f"{number}.jpg", seed=100 * len(split) + number)
            (tmp_path / split / "labels" / f"{number}.txt").write_text("0 0.3 0.3 0.2 0.2\n1 0.7 0.7 0.3 0.2\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: train/images\nval: val/images\n")
    (tmp_path / "train" / "labels" / "1.txt").write_text("7 0.3 0.3 0.2 0.2\n0 1.2 0.3 0.6 0.2\n1 0.7 0.7 0.3 0.2\n")
    (tmp_path / "val" / "images" / "3.jpg").write_text("no image")
    before = check_dataset(tmp_path, input_size=(160, 160))
    assert set(found(before)) == {("train", "class_out_of_range"), ("train", "outside_picture"), ("val", "no_image_size")}
    path = write_fixed(before, tmp_path / "fixed")
    assert found(check_fixed(path)) == {("val", "unlisted_image"): 1}
    fixed = json.loads((tmp_path / "fixed" / "train.json").read_text())
    assert fixed["annotations"][2]["bbox"] == pytest.approx([0.9 * 160, 0.2 * 120, 0.1 * 160, 0.2 * 120])


def test_nothing_is_written_over(dataset, tmp_path):
    (tmp_path / "fixed").mkdir()
    (tmp_path / "fixed" / "mine.txt").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        write_fixed(dataset.check(), tmp_path / "fixed")
    assert [path.name for path in (tmp_path / "fixed").iterdir()] == ["mine.txt"]


def good(dataset, tmp_path):
    return json.loads((write_fixed(dataset.check(), tmp_path / "good").parent / "train.json").read_text())


def assert_fixed(dataset, found, tmp_path, expected):
    path = write_fixed(dataset.check(), tmp_path / "fixed")
    fixed = json.loads((tmp_path / "fixed" / "train.json").read_text())
    assert fixed["images"] == expected["images"] and fixed["categories"] == expected["categories"]
    for row, wanted in zip(fixed["annotations"], expected["annotations"], strict=True):
        wanted = {**wanted, "bbox": pytest.approx(wanted["bbox"]), "area": pytest.approx(wanted["area"]),
                  "segmentation": [pytest.approx(polygon) for polygon in wanted["segmentation"]]}
        assert row == wanted
    assert not any(severity == "error" for severity in (f.kind.severity for f in check_fixed(path).findings))


def corners(annotation):
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [x, y, x + width, y + height]


def fractions(annotation):
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [x / 160, y / 120, width / 160, height / 120]
    polygon = annotation["segmentation"][0]
    annotation["segmentation"] = [[value / (120 if place % 2 else 160) for place, value in enumerate(polygon)]]


def all_texts(annotation):
    annotation.update({key: str(annotation[key]) for key in ("image_id", "category_id", "area", "iscrowd")},
                      bbox=[f" {value}.0" for value in annotation["bbox"]])


def wrong_flags(annotation):
    annotation.update(iscrowd="no", area="large", segmentation=annotation["segmentation"][0])


def turned(annotation):
    x, y, width, height = annotation["bbox"]
    annotation["bbox"] = [x + width, y + height, -width, -height]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("spoil", [corners, fractions, all_texts, wrong_flags, turned], ids=lambda spoil: spoil.__name__)
def test_what_can_be_repaired_is_not_left_out(dataset, found, tmp_path, spoil, every):
    """All annotations of a file, or half of them."""
    expected = good(dataset, tmp_path)
    for annotation in dataset.content["train"]["annotations"][::every]:
        spoil(annotation)
    assert_fixed(dataset, found, tmp_path, expected)


def test_a_split_is_never_written_empty(dataset, tmp_path):
    for image in dataset.content["val"]["images"]:
        dataset.path("val", image["file_name"]).unlink()
    with pytest.raises(InputError, match="none of the 6 images of the val split would be left.*6 images that are listed but not"):
        write_fixed(dataset.check(), tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()


def test_boxes_that_are_all_left_out_are_no_repair(dataset, tmp_path):
    for annotation in dataset.content["train"]["annotations"]:
        annotation["bbox"] = [300, 20, 10, 10]
    with pytest.raises(InputError, match="none of the 24 boxes of the train split would be left"):
        write_fixed(dataset.check(), tmp_path / "fixed")


def test_a_split_that_cannot_be_read_is_not_left_out_in_silence(dataset, tmp_path):
    dataset.content["val"] = []
    with pytest.raises(InputError, match="--fix: the val split cannot be read .*holds a list"):
        write_fixed(dataset.check(), tmp_path / "fixed")
