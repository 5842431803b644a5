"""A data set in another format and back: equal boxes, classes and masks; what a format cannot keep is counted."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rfdetr.data.converting import convert_dataset
from rfdetr.data.findings import Findings
from rfdetr.data.formats import available_splits, read_split
from rfdetr.data.outlines import bridged, outline
from rfdetr.data.packing import pack_dataset
from rfdetr.data.segmentations import draw, encode
from rfdetr.errors import InputError
from rfdetr.training.commands import main


def objects(folder: Path, split: str, *, with_masks: bool = True, crowds: bool = True, by_name: bool = True) -> dict[str, list]:
    """Return {file name: [(class, box, mask)]}, in the order of the boxes."""
    raw = read_split(folder, split, with_masks=with_masks, findings=Findings())
    names = {category.id: category.name for category in raw.categories}
    found = {Path(name).name: [] for name in raw.file_names}
    for row, image in enumerate(raw.image_indices.tolist()):
        mask = draw(raw.segmentations[row], *raw.image_sizes[image].tolist()) if with_masks and raw.segmentations[row] else None
        if crowds or not raw.is_crowd[row]:
            found[Path(raw.file_names[image]).name].append((names[raw.category_ids[row]], raw.boxes[row], mask))
    return {name: sorted(rows, key=lambda row: (row[0], *row[1].round(3))) for name, rows in sorted(found.items())}


def assert_equal(one: dict[str, list], other: dict[str, list], *, boxes: float = 1e-6) -> None:
    assert one.keys() == other.keys() and sum(map(len, one.values())) > 0
    for name, rows in one.items():
        assert [row[0] for row in rows] == [row[0] for row in other[name]], name
        np.testing.assert_allclose(*[np.array([row[1] for row in rows]).reshape(-1, 4) for rows in (rows, other[name])],
                                   rtol=0, atol=boxes)
        for (_, _, mask), (_, _, again) in zip(rows, other[name]):
            assert (mask is None) == (again is None) and (mask is None or (mask == again).all()), name


@pytest.fixture(scope="session")
def cut(real_data, tmp_path_factory):
    """`cut(name)`: the first images of each split of a real data set, in COCO's layout."""
    def make(name: str, count: int = 6) -> Path:
        folder = tmp_path_factory.mktemp("cut") / name
        for split in available_splits(real_data / name)[:2]:
            raw = read_split(real_data / name, split)
            content = json.loads(raw.source.read_text())
            chosen = content["images"][:count]
            ids = {image["id"] for image in chosen}
            rows = [row for row in content["annotations"] if row["image_id"] in ids]
            content = {**content, "images": chosen, "annotations": rows}
            (folder / "annotations").mkdir(parents=True, exist_ok=True)
            (folder / split).mkdir()
            for image in chosen:
                (folder / split / image["file_name"]).symlink_to(raw.image_root / image["file_name"])
            (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return folder
    return make


@pytest.mark.parametrize("name", ["bccd", "coco_real", "nuclei_dsb2018"])
def test_coco_and_yolo_there_and_back(cut, name, tmp_path):
    folder = cut(name)
    copy = convert_dataset(folder, tmp_path / "coco", to="coco")
    lost = convert_dataset(tmp_path / "coco", tmp_path / "yolo", to="yolo", with_masks=False)
    convert_dataset(tmp_path / "yolo", tmp_path / "again", to="coco")
    for split in available_splits(folder):
        assert_equal(objects(folder, split), objects(tmp_path / "coco", split), boxes=1e-9)
        assert not any(copy[split].losses.values())
        before = objects(folder, split, with_masks=False, crowds=False)
        for other in ("yolo", "again"):
            assert_equal(before, objects(tmp_path / other, split, with_masks=False))
        assert lost[split].objects == sum(map(len, before.values())) and not lost[split].losses["boxes"]


@pytest.mark.parametrize("name", ["coco_real", "nuclei_dsb2018"])
def test_masks_in_yolo_and_back_are_the_same_pixels(cut, name, tmp_path):
    folder = cut(name)
    lost = convert_dataset(folder, tmp_path / "yolo", to="yolo", pictures="copy")
    convert_dataset(tmp_path / "yolo", tmp_path / "again", to="coco")
    for split in available_splits(folder):
        before, after = objects(folder, split, crowds=False), objects(tmp_path / "yolo", split)
        assert_equal(before, after, boxes=lost[split].farthest + 1e-6)
        assert_equal(after, objects(tmp_path / "again", split))
        assert not lost[split].losses["changed"] and lost[split].farthest < 3
    if name == "coco_real":
        assert any(found.losses["joined"] for found in lost.values()), "there are objects in parts"
        assert "lose the group" in " ".join(lost["train"].notes())


def test_yolo_to_coco_and_back(real_data, tmp_path):
    source = tmp_path / "cones"
    for split in ("train", "valid", "test"):
        for image in sorted((real_data / "cones_yolo" / split / "images").iterdir())[:5]:
            for path in (image, image.parents[1] / "labels" / f"{image.stem}.txt"):
                target = source / path.relative_to(real_data / "cones_yolo")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    shutil.copy(real_data / "cones_yolo" / "data.yaml", source)
    convert_dataset(source, tmp_path / "coco", to="coco")
    convert_dataset(tmp_path / "coco", tmp_path / "yolo", to="yolo")
    for split in ("train", "val"):
        for other in ("coco", "yolo"):
            assert_equal(objects(source, split), objects(tmp_path / other, split))


VOC_BOX = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def write_voc(folder: Path, split: str, name: str, size: tuple[int, int], rows: list) -> None:
    objects_ = "".join(VOC_BOX.format(label, *box.tolist()) for label, box, _ in rows)
    (folder / split / f"{Path(name).stem}.xml").write_text(
        f"<annotation><filename>{name}</filename><size><width>{size[1]}</width><height>{size[0]}</height></size>{objects_}"
        "</annotation>")


def write_labelme(folder: Path, split: str, name: str, size: tuple[int, int], rows: list) -> None:
    shapes = [{"label": label, "shape_type": "rectangle", "points": box.reshape(2, 2).tolist()} for label, box, _ in rows]
    (folder / split / f"{Path(name).stem}.json").write_text(
        json.dumps({"shapes": shapes, "imagePath": name, "imageData": None, "imageHeight": size[0], "imageWidth": size[1]}))


def write_darknet(folder: Path, split: str, name: str, size: tuple[int, int], rows: list) -> None:
    names = ["Platelets", "RBC", "WBC"]
    (folder / "obj.names").write_text("\n".join(names))
    (folder / "obj.data").write_text("train = train.txt\nvalid = valid.txt\nnames = obj.names\n")
    with open(folder / f"{split}.txt", "a") as file:
        file.write(f"{split}/{name}\n")
    scale = np.array(size[::-1])
    lines = [[names.index(label), *(box.reshape(2, 2).mean(0) / scale), *((box[2:] - box[:2]) / scale)] for label, box, _ in rows]
    (folder / split / f"{Path(name).stem}.txt").write_text("\n".join(" ".join(map(str, line)) for line in lines))


@pytest.mark.parametrize("write", [write_voc, write_labelme, write_darknet])
@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_the_same_data_in_other_formats(cut, write, to, tmp_path):
    folder = cut("bccd")
    for split, name in (("train", "train"), ("val", "valid")):
        raw = read_split(folder, split)
        (tmp_path / "other" / name).mkdir(parents=True)
        for image, size in zip(raw.file_names, raw.image_sizes.tolist()):
            shutil.copy(raw.image_root / image, tmp_path / "other" / name)
            write(tmp_path / "other", name, image, size, objects(folder, split)[image])
    convert_dataset(tmp_path / "other", tmp_path / "made", to=to)
    for split in ("train", "val"):
        before = objects(folder, split)
        assert_equal(before, objects(tmp_path / "other", split))
        assert_equal(before, objects(tmp_path / "made", split))


def test_pictures_inside_of_other_files_are_written_out(write_picture, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        write_picture(tmp_path / "p.png", (30, 40))
        data = base64.b64encode((tmp_path / "p.png").read_bytes()).decode()
        shape = {"label": "a", "shape_type": "rectangle", "points": [[1, 2], [11, 22]]}
        (tmp_path / "data" / split / "p.json").write_text(json.dumps(
            {"shapes": [shape], "imagePath": "p.png", "imageData": data, "imageHeight": 30, "imageWidth": 40}))
    convert_dataset(tmp_path / "data", tmp_path / "yolo", to="yolo")
    pack_dataset(tmp_path / "data", tmp_path / "shards")
    convert_dataset(tmp_path / "shards", tmp_path / "coco", to="coco")
    for folder in ("shards", "coco", "yolo"):
        (rows,) = objects(tmp_path / folder, "val").values()
        np.testing.assert_allclose(rows[0][1], [1, 2, 11, 22], atol=1e-9)
    assert (tmp_path / "yolo" / "images" / "val" / "p.png").read_bytes() == (tmp_path / "p.png").read_bytes()


def test_run_lengths_parts_and_holes_are_polygons_of_the_same_pixels(write_roboflow, coco_content, tmp_path):
    generator = np.random.default_rng(0)
    content = coco_content(3)
    content["annotations"] = content["annotations"][:1]
    masks = [generator.random((60, 80)) < 0.5, np.pad(np.ones((20, 20), bool), ((5, 35), (5, 55)))]
    masks[1][10:15, 10:15] = False
    masks.append(masks[1].copy())
    masks[2][40:50, 60:70] = True
    for number, mask in enumerate(masks):
        counts = np.diff(np.flatnonzero(np.diff(np.r_[-1, mask.T.ravel().astype(int), -1])), prepend=0)
        counts = [int(count) for count in counts]
        content["annotations"].append({"id": 50 + number, "image_id": 10, "category_id": 7, "bbox": [0, 0, 80, 60], "iscrowd": 0,
                                       "segmentation": {"size": [60, 80], "counts": ([] if not mask[0, 0] else [0]) + counts}})
        assert (draw(encode([outline(mask).ravel()]), 60, 80) == mask).all()
    overlapping = [[10, 10, 30, 10, 30, 30, 10, 30], [20, 20, 40, 20, 40, 40, 20, 40]]
    content["annotations"].append({"id": 60, "image_id": 11, "category_id": 3, "bbox": [10, 10, 30, 30],
                                   "segmentation": overlapping})
    folder = write_roboflow(train=content, valid=content)
    lost = convert_dataset(folder, tmp_path / "yolo", to="yolo")
    before, after = objects(folder, "train"), objects(tmp_path / "yolo", "train")
    assert_equal(before, after, boxes=25)
    assert {name: lost["train"].losses[name] for name in ("traced", "joined", "changed")} == {
        "traced": 3, "joined": 1, "changed": 0}


def test_bridges_have_no_width():
    squares = [np.array([[x, 0], [x + 4, 0], [x + 4, 4], [x, 4]], float) for x in (0, 10, 20)]
    joined = bridged(squares)
    x, y = joined.T
    assert abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2 == 48 and len(joined) == 4 + 2 * 6
    assert bridged([]).shape == (0, 2) and outline(np.zeros((3, 3), bool)).shape == (0, 2)


def test_names_repeats_and_classes(write_roboflow, coco_content, tmp_path):
    content = coco_content(3, extension="jpg")
    content["images"][1]["file_name"] = "picture_0.png"
    content["images"].append({**content["images"][2], "id": 99})
    content["annotations"] += [{**row, "id": 1000 + row["id"], "image_id": 99} for row in content["annotations"]
                               if row["image_id"] == content["images"][2]["id"]]
    content["categories"][0]["name"] = "no: [x]"
    val = coco_content(2)
    val["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "no: [x]"}]
    for row in val["annotations"]:
        row["category_id"] = {3: 2, 7: 1}[row["category_id"]]
    folder = write_roboflow(train=content, valid=val)
    lost = convert_dataset(folder, tmp_path / "yolo", to="yolo")
    assert sorted(path.name for path in (tmp_path / "yolo" / "labels" / "train").iterdir()) == [
        "picture_0-2.txt", "picture_0.txt", "picture_2.txt"]
    assert lost["train"].losses["renamed"] == 1 and lost["train"].losses["crowds"] == 1
    assert yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())["train"] == "train.txt"
    train, val = (read_split(tmp_path / "yolo", split, findings=Findings()) for split in ("train", "val"))
    assert len(train.file_names) == 4 and [category.name for category in train.categories] == ["no: [x]", "dog"]
    assert sum(train.category_ids == 0) == sum(row["category_id"] == 3 and not row["iscrowd"] for row in content["annotations"])
    assert set(val.category_ids.tolist()) == {0}


def test_what_is_shown_in_another_size_is_refused(write_roboflow, coco_content, tmp_path):
    content = coco_content(2, extension="jpg")
    folder = write_roboflow(train=content)
    path = folder / "train" / "picture_1.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    with pytest.raises(InputError, match=r"picture_1\.jpg: is annotated as 80 x 60, but shown as 60 x 80"):
        convert_dataset(folder, tmp_path / "yolo", to="yolo")
    assert not (tmp_path / "yolo").exists() and not (tmp_path / "yolo.partial").exists()
    convert_dataset(folder, tmp_path / "coco", to="coco")
    path.unlink()
    with pytest.raises(InputError, match=r"picture_1\.jpg: there is no such image file"):
        convert_dataset(folder, tmp_path / "other", to="coco")


def test_the_command(write_roboflow, coco_content, tmp_path, capsys):
    folder = write_roboflow(train=coco_content(3), valid=coco_content(2))
    argv = ["convert", "--from", "roboflow", "--dataset_dir", str(folder), "--output", str(tmp_path / "out")]
    for words, code, text in (([], 2, "--to: is missing"), (["--to", "yolo"], 0, "train: 3 images, 3 objects\n"),
                              (["--to", "yolo"], 2, "exists and is not an empty folder")):
        with pytest.raises(SystemExit) as ended:
            main([*argv, *words])
        printed = capsys.readouterr()
        assert ended.value.code == code and text in printed.out + printed.err
        if not code:
            assert "1 crowd regions are left out" in printed.out and "--pictures copy" in printed.out
    assert all(path.is_symlink() for path in (tmp_path / "out" / "images" / "train").iterdir())
    with pytest.raises(SystemExit):
        main([*argv[:-1], str(tmp_path / "copy"), "--to", "coco", "--pictures", "copy"])
    assert not any(path.is_symlink() for path in (tmp_path / "copy" / "images" / "train").iterdir())
    assert_equal(objects(folder, "val"), objects(tmp_path / "copy", "val"))


def test_a_category_that_groups_others_becomes_no_class(cut, tmp_path):
    """Roboflow's exports have one; YOLO's numbers are those of training."""
    source, folder = cut("bccd"), tmp_path / "yolo"
    content = json.loads(next((source / "annotations").glob("*.json")).read_text())
    assert "cells" in [category["name"] for category in content["categories"]]
    convert_dataset(source, folder, to="yolo")
    assert list(yaml.safe_load((folder / "data.yaml").read_text())["names"].values()) == ["Platelets", "RBC", "WBC"]
