"""Every kind of dirt, made one at a time in a clean data set, is found as that and as nothing else."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rfdetr.datacheck import check_dataset, has_errors, images
from rfdetr.errors import InputError

SIZE = {"input_size": (160, 160)}


def test_a_clean_data_set_has_no_findings(dataset, found):
    assert found(dataset.check(decode=True)) == {}


def missing_image(data, picture):
    data.path("train", "train_3.jpg").unlink()
    return {("train", "missing_image"): 1}


def other_name(data, picture):
    data.path("train", "train_3.jpg").rename(data.path("train", "Train_3.JPG"))
    return {("train", "other_name"): 1}


def case_clash(data, picture):
    data.image(4)["file_name"] = "TRAIN_3.jpg"
    data.path("train", "train_4.jpg").rename(data.path("train", "TRAIN_3.jpg"))
    return {("train", "case_clash"): 1}


def listed_twice(data, picture):
    data.image(4)["file_name"] = "train_3.jpg"
    data.path("train", "train_4.jpg").unlink()
    data.set_box(data.cat(4), [90, 5, 40, 30])
    return {("train", "listed_twice"): 1}


def unlisted_image(data, picture):
    picture(data.path("val", "forgotten.png"), seed=999)
    return {("val", "unlisted_image"): 1}


def unsupported(data, picture):
    data.path("train", "IMG_1.HEIC").write_bytes(b"heic")
    return {("train", "unsupported"): 1}


def same_image(data, picture):
    data.image(2, "val")["file_name"] = "../train/train_3.jpg"
    data.path("val", "val_2.jpg").unlink()
    return {("val", "same_image"): 1}


def same_source(data, picture):
    for split, number, letters in (("train", 3, "abc1"), ("val", 2, "def2")):
        image = data.image(number, split)
        data.path(split, image["file_name"]).rename(data.path(split, f"cow_jpg.rf.{letters}.jpg"))
        image["file_name"] = f"cow_jpg.rf.{letters}.jpg"
    return {("val", "same_source"): 1}


def same_video(data, picture):
    for split, number, name in (("train", 3, "drive_mp4-12.jpg"), ("val", 2, "drive_mp4-13.jpg"), ("val", 3, "walk_mp4-13.jpg")):
        image = data.image(number, split)
        data.path(split, image["file_name"]).rename(data.path(split, name))
        image["file_name"] = name
    return {("val", "same_video"): 1}


def undecodable(data, picture):
    path = data.path("train", "train_3.jpg")
    path.write_bytes(path.read_bytes()[:-900])
    data.path("val", "val_1.jpg").write_text("no image")
    return {("train", "undecodable"): 1, ("val", "undecodable"): 1}


def missing_split(data, picture):
    del data.content["val"]
    return {("val", "missing_split"): 1}


def unreadable_split(data, picture):
    data.content["val"] = []
    return {("val", "unreadable_split"): 1}


def no_name(data, picture):
    for split in data.content:
        data.content[split]["categories"][2]["name"] = " "
    return {("train", "no_name"): 1, ("val", "no_name"): 1}


def name_twice(data, picture):
    for split in data.content:
        data.content[split]["categories"][2]["name"] = "Cat "
    return {("train", "name_twice"): 1, ("val", "name_twice"): 1}


def other_ids(data, picture):
    data.content["val"]["categories"][1]["id"], data.content["val"]["categories"][2]["id"] = 2, 1
    for row in data.content["val"]["annotations"]:
        row["category_id"] = 3 - row["category_id"]
    return {("val", "other_ids"): 2}


def other_numbers(data, picture):
    for number in (1, 2):
        data.content["val"]["categories"][number]["name"] = str(number)
    return {("val", "other_numbers"): 2}


def other_classes(data, picture):
    data.content["val"]["categories"][1]["name"], data.content["val"]["categories"][2]["name"] = "mouse", "rat"
    return {("val", "other_classes"): 1}


def no_objects(data, picture):
    data.content["train"]["categories"].append({"id": 3, "name": "cow", "supercategory": "animals"})
    return {("train", "no_objects"): 1}


def few_objects(data, picture):
    for split in data.content:
        data.content[split]["categories"].append({"id": 3, "name": "cow", "supercategory": "animals"})
        data.dog(0, split)["category_id"] = 3
    return {("train", "few_objects"): 1}


def only_here(data, picture):
    data.content["val"]["categories"].append({"id": 3, "name": "cow", "supercategory": "animals"})
    data.dog(0, "val")["category_id"] = 3
    return {("val", "only_here"): 1}


def not_here(data, picture):
    for number in range(6):
        data.dog(number, "val")["category_id"] = 1
    return {("val", "not_here"): 1}


def background(data, picture):
    del data.content["train"]["annotations"][4:6]
    return {("train", "background"): 1}


def much_background(data, picture):
    del data.content["val"]["annotations"][4:]
    return {("val", "much_background"): 4}


def no_boxes(data, picture):
    data.content["val"]["annotations"] = []
    return {("val", "no_boxes"): 1}


def wrong_size(data, picture):
    picture(data.path("train", "train_3.jpg"), seed=3, size=(60, 80))
    return {("train", "wrong_size"): 1}


def rotated(data, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(data.path("train", "train_3.jpg"), seed=3, size=(160, 120), exif=exif)  # turned, it is as annotated
    return {("train", "rotated"): 1}


def odd_mode(data, picture):
    for name in ("train_3.jpg", "train_4.jpg"):
        path = data.path("train", name)
        Image.open(path).convert("CMYK").save(path)
    return {("train", "odd_mode"): 2}


def make_deep(data, split: str, number: int, values: np.ndarray) -> None:
    """Put a picture of 16 bits in the place of one."""
    data.path(split, f"{split}_{number}.jpg").unlink()
    data.image(number, split)["file_name"] = f"{split}_{number}.png"
    Image.fromarray(values.astype(np.uint16)).save(data.path(split, f"{split}_{number}.png"))


def deep(data, picture):
    levels = np.add.outer(np.arange(120) ** 2 % 97, np.arange(160))
    make_deep(data, "train", 3, levels * 16)
    make_deep(data, "train", 4, levels.max() * 16 - levels[::-1] * 15)
    make_deep(data, "val", 2, levels[:, ::-1] * 4)
    return {("train", "deep"): 2, ("val", "deep"): 1}


def small_image(data, picture):
    picture(data.path("train", "train_3.jpg"), seed=3, size=(30, 40))
    data.image(3).update(height=30, width=40)
    data.set_box(data.cat(3), [2, 2, 12, 12])
    data.set_box(data.dog(3), [18, 10, 14, 12])
    return {("train", "small_image"): 1}


def extreme_shape(data, picture):
    picture(data.path("train", "train_3.jpg"), seed=3, size=(120, 600))
    data.image(3)["width"] = 600
    return {("train", "extreme_shape"): 1}


def uniform(data, picture):
    for name in ("train_3.jpg", "train_4.jpg"):
        Image.new("RGB", (160, 120), (50 * int(name[6]), 9, 9)).save(data.path("train", name))
    return {("train", "uniform"): 2}


def identical_to_train(data, picture):
    shutil.copy(data.path("train", "train_3.jpg"), data.path("val", "val_2.jpg"))
    return {("val", "identical_to_train"): 1}


def identical(data, picture):
    shutil.copy(data.path("train", "train_3.jpg"), data.path("train", "train_5.jpg"))
    return {("train", "identical"): 1}


def similar_to_train(data, picture):
    with Image.open(data.path("train", "train_3.jpg")) as image:
        image.point(lambda value: value * 0.9).save(data.path("val", "val_2.jpg"), quality=60)
    return {("val", "similar_to_train"): 1}


def similar(data, picture):
    with Image.open(data.path("train", "train_3.jpg")) as image:
        image.save(data.path("train", "train_5.jpg"), quality=50)
    return {("train", "similar"): 1}


def not_finite(data, picture):
    data.cat(2)["bbox"][1] = float("nan")
    return {("train", "not_finite"): 1}


def zero_size(data, picture):
    data.cat(2)["bbox"] = [10, 20, 0, 30]
    data.cat(3)["bbox"] = [10, 20, 0, 0]
    return {("train", "zero_size"): 2}


def outside(data, picture):
    data.cat(2)["bbox"] = [200, 20, 40, 30]
    return {("train", "outside"): 1}


def over_edge(data, picture):
    data.set_box(data.cat(2), [-5, 20, 40, 30])
    data.set_box(data.cat(3), [-0.9, 20, 40, 30])  # not worth a word
    return {("train", "over_edge"): 1}


def do_not_fit(data, picture):
    for number in range(8):  # corners instead of a size
        data.dog(number)["bbox"] = [70, 50, 110, 100]
    return {("train", "do_not_fit"): 8}


def speck(data, picture):
    data.set_box(data.cat(2), [30, 30, 3, 1.5])
    return {("train", "speck"): 1}


def tiny(data, picture):
    for number in range(4):
        data.set_box(data.cat(number), [30, 30, 5, 5])
    return {("train", "tiny"): 4}


def whole_image(data, picture):
    for number in range(4):
        data.set_box(data.cat(number), [0, 0, 160, 120])
    return {("train", "whole_image"): 4}


def extreme_aspect(data, picture):
    data.set_box(data.cat(2), [5, 5, 124, 4])
    return {("train", "extreme_aspect"): 1}


def duplicate(data, picture):
    data.set_box(data.dog(2), [12, 21, 40, 30])
    data.dog(2)["category_id"] = 1
    return {("train", "duplicate"): 1}


def two_classes(data, picture):
    data.set_box(data.dog(2), data.cat(2)["bbox"])
    return {("train", "two_classes"): 1}


def too_many_objects(data, picture):
    for number in range(299):
        box = [number % 20 * 8, number // 20 * 8, 8, 8]
        data.content["train"]["annotations"].append({**data.cat(2), "id": number, "bbox": box, "area": 64,
                                                     "segmentation": [[*box[:2], box[0] + 8, box[1], box[0] + 8, box[1] + 8]]})
    return {("train", "too_many_objects"): 1}


def crowd(data, picture):
    data.content["train"]["annotations"].append({**data.cat(2), "id": 1, "iscrowd": 1, "bbox": [0, 0, 90, 90]})
    return {("train", "crowd"): 1}


def without_mask(data, picture):
    data.cat(2)["segmentation"] = []
    return {("train", "without_mask"): 1}


def mask_box(data, picture):
    data.cat(2)["segmentation"] = [[10, 20, 35, 20, 35, 50, 10, 50]]
    return {("train", "mask_box"): 1}


def pieces(data, picture):
    data.cat(2)["segmentation"] = [[10, 20, 20, 20, 20, 50, 10, 50], [30, 20, 50, 20, 50, 50, 30, 50]]
    return {("train", "pieces"): 1}


def runs_of(mask: np.ndarray) -> dict:
    """Uncompressed run lengths of a mask (h, w)."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int)])
    edges = np.flatnonzero(np.diff(np.concatenate([flat, [2]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def hole(data, picture):
    mask = np.zeros((120, 160), dtype=bool)
    mask[20:50, 10:50] = True
    mask[30:34, 20:24] = False
    data.cat(2)["segmentation"] = runs_of(mask)
    data.cat(3)["area"] = 40 * 30 - 16  # a polygon, in a file whose areas are pixels
    return {("train", "hole"): 2}


def overlap(data, picture):
    for annotation, (top, left, bottom, right) in ((data.cat(2), (20, 10, 50, 50)), (data.dog(2), (49, 49, 100, 110))):
        mask = np.zeros((120, 160), dtype=bool)
        mask[top:bottom, left:right] = True
        data.set_box(annotation, [left, top, right - left, bottom - top])
        annotation["segmentation"] = runs_of(mask)
    return {("train", "overlap"): 1}


def reader_finding(data, picture):
    data.cat(2)["category_id"] = 77
    return {("train", "unknown_category"): 1}


KINDS = [
    missing_image, other_name, case_clash, listed_twice, unlisted_image, unsupported, same_image, same_source, same_video,
    undecodable, missing_split, unreadable_split, no_name, name_twice, other_ids, other_numbers, other_classes, no_objects,
    few_objects, only_here, not_here, background, much_background, no_boxes, wrong_size, rotated, odd_mode, deep, small_image,
    extreme_shape, uniform, identical_to_train, identical, similar_to_train, similar, not_finite, zero_size, outside, over_edge,
    do_not_fit, speck, tiny, whole_image, extreme_aspect, duplicate, two_classes, too_many_objects, crowd, without_mask,
    mask_box, pieces, hole, overlap, reader_finding,
]  # fmt: skip


@pytest.mark.parametrize("spoil", KINDS, ids=lambda spoil: spoil.__name__)
def test_dirt_is_found_as_what_it_is(spoil, dataset, found, picture):
    expected = spoil(dataset, picture)
    check = dataset.check()
    assert found(check) == expected
    for finding in check.findings:
        assert finding.kind.text and finding.kind.advice
        assert 1 <= len(finding.examples) <= 5
    gravest = {finding.kind.severity for finding in check.findings}
    assert has_errors(check) == ("error" in gravest)


def test_the_white_level_is_reported_and_may_be_too_low(dataset, found):
    deep(dataset, None)
    check = dataset.check(decode=True)
    (train,) = [finding for finding in check.findings if (finding.split, finding.name) == ("train", "deep")]
    assert train.examples[0] == "train_3.png (values 0 to 4080 of 65535, white is 4095)"
    (val,) = [finding for finding in check.findings if finding.split == "val"]
    assert val.examples == ["val_2.png (values 0 to 1020 of 65535, white is 4095)"]
    expected = {("train", "deep"): 2, ("val", "deep"): 1}
    assert found(dataset.check(white_level=1023)) == {**expected, ("train", "above_white"): 2}


@pytest.mark.parametrize("kind", ["pipe", "folder", "empty"])
def test_what_is_no_file_is_found(dataset, found, kind):
    path = dataset.path("train", "train_3.jpg")
    path.unlink()
    {"pipe": os.mkfifo, "folder": Path.mkdir, "empty": Path.touch}[kind](path)
    assert ("train", "undecodable") in found(dataset.check(decode=True))


def test_masks_in_pieces_are_no_finding_where_many_are(dataset, found):
    for number in range(4):
        dataset.cat(number)["segmentation"] = [[10, 20, 20, 20, 20, 50, 10, 50], [30, 20, 50, 20, 50, 50, 30, 50]]
    assert found(dataset.check()) == {}


def test_the_quick_check_opens_no_image_and_draws_no_mask(dataset, found):
    dataset.path("train", "train_3.jpg").write_text("no image")
    dataset.cat(2)["segmentation"] = [["a"]]
    dataset.cat(4)["bbox"] = [0, 0, 0, 0]
    dataset.path("val", "val_1.jpg").unlink()
    assert found(dataset.check(quick=True)) == {("train", "zero_size"): 1, ("val", "missing_image"): 1}


def test_imbalance_and_skew_need_many_objects(tmp_path, found):
    """A split of 60 images, half of them with a dog, and one of 60 where hardly any has one."""
    for folder, dogs in (("train", 30), ("valid", 6)):
        (tmp_path / folder).mkdir()
        images = [{"id": number, "file_name": f"{folder}_{number}.jpg", "height": 200, "width": 4000} for number in range(60)]
        boxes = [(number, 1, [20 * place, 20, 18, 30]) for number in range(60) for place in range(51 if folder == "train" else 3)]
        boxes += [(number, 2, [3000, 20, 90, 90]) for number in range(dogs)]
        annotations = [{"id": row, "image_id": image, "category_id": category, "bbox": box}
                       for row, (image, category, box) in enumerate(boxes)]
        for image in images:
            (tmp_path / folder / image["file_name"]).touch()
        categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / folder / "_annotations.coco.json").write_text(json.dumps(content))
    check = check_dataset(tmp_path, quick=True, **SIZE)
    assert found(check) == {("train", "imbalance"): 1, ("val", "skewed"): 1, ("train", "tiny"): 3060, ("val", "tiny"): 180}
    (imbalance,) = [finding for finding in check.findings if finding.name == "imbalance"]
    assert list(imbalance.examples) == ["dog 30 (on 50.00% of the images: repeat_factor would show them 1.0 times an epoch, "
                                        "balanced count each box 51.5 times)"]


def test_yolo_dirt_of_reader_and_check_is_counted_once(tmp_path, found, picture):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / split / kind).mkdir(parents=True)
        for number in range(12):
            picture(tmp_path / split / "images" / f"{number}.jpg", seed=100 * len(split) + number)
            (tmp_path / split / "labels" / f"{number}.txt").write_text("0 0.3 0.3 0.2 0.2\n1 0.7 0.7 0.3 0.2\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\nnc: 2\ntrain: train/images\nval: val/images\n")
    labels = tmp_path / "train" / "labels"
    (labels / "1.txt").write_text("7 0.3 0.3 0.2 0.2\n1 0.7 0.7 0.3 0.2\n")  # an id beyond nc
    (labels / "2.txt").write_text("0 1.2 0.3 0.6 0.2\n1 0.7 0.7 0.3 0.2\n")  # the reader's, although it leaves the image as well
    (labels / "3.txt").write_text("0 0.95 0.3 0.3 0.2\n1 0.7 0.7 0.3 0.2\n")  # leaves the image; its numbers do not
    (labels / "4.txt").unlink()
    (labels / "lost.txt").write_text("0 0.3 0.3 0.2 0.2\n")
    (tmp_path / "val" / "images" / "3.jpg").write_text("no image")
    (tmp_path / "val" / "images" / "clip.mp4").touch()
    assert found(check_dataset(tmp_path, **SIZE)) == {
        ("train", "class_out_of_range"): 1, ("train", "outside_picture"): 1, ("train", "over_edge"): 1,
        ("train", "background_image"): 1, ("train", "label_without_image"): 1, ("val", "no_image_size"): 1,
        ("val", "unsupported"): 1,
    }


def test_large_images(dataset, found, picture, monkeypatch):
    monkeypatch.setattr(images, "LARGE_AREA", 100_000)
    picture(dataset.path("train", "train_3.jpg"), seed=3, size=(300, 400))
    dataset.image(3).update(height=300, width=400)
    assert found(dataset.check()) == {("train", "large_image"): 1}


def test_copies_of_val_in_test(dataset, found):
    """A copy of an image of the val split counts less than one of the train split."""
    folder = shutil.copytree(dataset.write() / "valid", dataset.root / "test")
    with Image.open(folder / "val_3.jpg") as image:
        image.save(folder / "val_3.jpg", quality=40)
    shutil.copy(dataset.path("train", "train_1.jpg"), folder / "val_2.jpg")
    assert found(dataset.check()) == {("test", "identical_across"): 4, ("test", "similar_across"): 1,
                                      ("test", "identical_to_train"): 1}


def test_many_alike_frames_are_compared_with_their_neighbours_only(dataset, found, picture):
    """150 frames of a still camera, which share every band of their hashes."""
    frame = Image.open(dataset.path("train", "train_1.jpg")).convert("RGB")
    for number in range(150):
        frame.putpixel((0, 0), (number % 256, number // 256, 0))
        frame.save(dataset.path("train", f"still_{number}.png"))
        image = {"id": 1000 + number, "file_name": f"still_{number}.png", "height": 120, "width": 160}
        dataset.content["train"]["images"].append(image)
        dataset.content["train"]["annotations"].append({**dataset.cat(0), "id": number, "image_id": image["id"]})
    check = dataset.check()
    assert found(check) == {("train", "fixed_camera"): 151}
    (camera,) = check.findings
    assert camera.examples == ["151 of 162: train_1.jpg, still_0.png, still_1.png, ..."] and "delete" not in str(camera)


def test_few_alike_pictures_are_copies_and_many_a_fixed_camera(dataset, found):
    frame = Image.open(dataset.path("train", "train_1.jpg")).convert("RGB")
    for number in range(7):
        expected = {("train", "similar"): number} if 0 < number < 7 else {}
        assert found(dataset.check()) == expected
        frame.putpixel((0, 0), (number, 0, 0))
        frame.save(dataset.path("train", f"still_{number}.png"))
        image = {"id": 1000 + number, "file_name": f"still_{number}.png", "height": 120, "width": 160}
        dataset.content["train"]["images"].append(image)
        dataset.content["train"]["annotations"].append({**dataset.cat(0), "id": number, "image_id": image["id"]})
    assert found(dataset.check()) == {("train", "fixed_camera"): 8}


def test_files_of_a_layout_of_ones_own(dataset, found):
    dataset.write()
    paths = {split: {"annotations": f"{folder}/_annotations.coco.json", "images": folder}
             for split, folder in (("train", "train"), ("val", "valid"))}
    assert found(check_dataset(dataset.root, paths=paths, **SIZE)) == {}


def test_without_a_data_set_there_is_nothing_to_check(tmp_path):
    with pytest.raises(InputError, match="no data set found"):
        check_dataset(tmp_path, **SIZE)
