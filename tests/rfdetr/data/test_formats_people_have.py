"""Pascal VOC, LabelMe, Darknet's and CVAT's YOLO: recognised, read as the same data in COCO, and their faults are findings."""

import base64
import io
import json
import os
import random
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

from rfdetr.data import available_splits, detect_format, open_dataset
from rfdetr.data.findings import Findings
from rfdetr.data.formats import read_split
from rfdetr.data.segmentations import draw
from rfdetr.datacheck import check_dataset
from rfdetr.errors import InputError

SIZE = (30, 40)  # h, w
BOXES = {"a": [("cat", (2, 3, 22, 13))], "b": [("dog", (5.5, 4, 30, 25.25)), ("cat", (0, 0, 40, 30))], "c": []}


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([seed, *path.name.encode()]).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def voc(objects, name: str = "", *, size: str = "<size><width>40</width><height>30</height></size>", database: str = "Unknown",
        extra: str = "") -> str:
    rows = [f"<object><name>{escape(label)}</name><part><name>head</name><bndbox/></part>{extra}<bndbox>"
            + "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
            + "</bndbox></object>" for label, box in objects]
    return "\n".join(["<annotation>", f"<filename>{name}</filename><source><database>{database}</database></source>{size}", *rows,
                      "</annotation>"])


def labelme(objects, name: str = "", **extra) -> str:
    shapes = [{"label": label, "shape_type": "rectangle", "points": [box[2:], box[:2]]} for label, box in objects]
    return json.dumps({"version": "5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, "imageHeight": 30,
                       "imageWidth": 40, **extra})


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def content(folder: Path, split: str = "train", **options):
    """Return {picture's stem: [(class, box)]} of a split, which has no fault."""
    raw = read_split(folder, split, **options)
    names = {category.id: category.name for category in raw.categories}
    found = {Path(name).stem: [] for name in raw.file_names}
    for image, category, box in zip(raw.image_indices, raw.category_ids, raw.boxes):
        found[Path(raw.file_names[image]).stem].append((names[category], tuple(box.tolist())))
    return found


def faults(folder: Path, split: str = "train", **options) -> dict[str, list[str]]:
    findings = Findings()
    read_split(folder, split, findings=findings, **options)
    return {found.name: found.examples for found in findings}


def devkit(folder: Path, lists: dict[str, list[str]], boxes=BOXES, **options) -> Path:
    for stem, objects in boxes.items():
        picture(folder / "JPEGImages" / f"{stem}.jpg")
        write(folder / "Annotations" / f"{stem}.xml", voc(objects, f"{stem}.jpg", **options))
    for name, stems in lists.items():
        write(folder / "ImageSets" / "Main" / f"{name}.txt", "\n".join(stems) + "\n")
    return folder


def beside(folder: Path, note, suffix: str, places: str = "{split}") -> Path:
    for split in ("train", "valid"):
        for stem, objects in BOXES.items():
            name = picture(folder / places.format(split=split) / f"{stem}.png", seed=split == "valid").name
            write(folder / places.format(split=split) / f"{stem}{suffix}", note(objects, name))
    return folder


def darknet(folder: Path, keys=("train", "valid"), prefix: str = "data/") -> Path:
    for key in keys:
        images = [picture(folder / f"obj_{key}_data" / f"{stem}.png", seed=key == "valid") for stem in BOXES]
        for path, objects in zip(images, BOXES.values()):
            lines = [f"{['cat', 'dog'].index(label)} {(x0 + x1) / 80} {(y0 + y1) / 60} {(x1 - x0) / 40} {(y1 - y0) / 30}"
                     for label, (x0, y0, x1, y1) in objects]
            write(path.with_suffix(".txt"), "\n".join(lines))
        write(folder / f"{key}.txt", "".join(f"{prefix}{path.relative_to(folder).as_posix()}\n" for path in images))
    write(folder / "obj.names", "cat\ndog\n")
    write(folder / "obj.data", "classes = 2\n" + "".join(f"{key} = {prefix}{key}.txt\n" for key in keys)
          + f"names = {prefix}obj.names\nbackup = backup/\n")
    return folder


LAYOUTS = {
    "devkit": ("voc", lambda f: devkit(f, {"train": list(BOXES), "val": list(BOXES), "cat_train": ["a -1"], "trainval": ["a"]})),
    "VOCdevkit": ("voc", lambda f: devkit(f / "VOCdevkit" / "VOC2007", {"train": list(BOXES), "val": list(BOXES)}) and f),
    "VOC by Roboflow": ("voc", lambda f: beside(f, voc, ".xml")),
    "LabelMe": ("labelme", lambda f: beside(f, labelme, ".json")),
    "LabelMe, folders below": ("labelme", lambda f: beside(f, labelme, ".json", "data/{split}/camera")),
    "Darknet": ("yolo", darknet), "Darknet, own paths": ("yolo", lambda f: darknet(f, prefix="")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    expected, make = LAYOUTS[layout]
    folder = make(tmp_path)
    assert detect_format(folder) == detect_format(folder, expected) == expected
    assert available_splits(folder) == ("train", "val")
    for split in ("train", "val"):
        found = content(folder, split)
        assert found.keys() == BOXES.keys()
        for stem, objects in BOXES.items():
            assert [name for name, _ in found[stem]] == [name for name, _ in objects]
            assert np.allclose([box for _, box in found[stem]], [box for _, box in objects], atol=1e-9)
    assert open_dataset(folder, "val", training=False, image_size=(32, 32)).label_map.names == ["cat", "dog"]
    check = check_dataset(folder, input_size=(32, 32))
    errors = {found.name for found in check.findings if found.kind.severity == "error"}
    assert errors <= {"same_image", "identical_to_train"}  # the lists of the first two name the same pictures


@pytest.mark.parametrize("make", [
    lambda f: devkit(f, {}, {f"p{n}": BOXES["a"] for n in range(12)}),
    lambda f: devkit(f, {"default": [f"p{n}" for n in range(12)]}, {f"p{n}": BOXES["a"] for n in range(12)}),
    lambda f: [write(picture(f / f"p{n}.png").with_suffix(".json"), labelme(BOXES["a"])) for n in range(12)] and f,
])
def test_without_splits_it_is_divided_by_the_names(make, tmp_path):
    folder = make(tmp_path)
    parts = [set(content(folder, split)) for split in available_splits(folder)]
    assert len(parts) == 2 and all(parts) and not parts[0] & parts[1] and len(parts[0] | parts[1]) == 12
    assert len(content(folder, "val", val_fraction=0.6)) > len(parts[1])


def test_cvat_names_one_list_which_is_divided(tmp_path):
    folder = darknet(tmp_path, ("train",))
    parts = [set(content(folder, split)) for split in available_splits(folder)]
    assert len(parts) == 2 and parts[0] | parts[1] == BOXES.keys() and not parts[0] & parts[1]


def test_a_list_of_all_with_a_list_of_the_test_split(tmp_path):
    stems = [f"p{n}" for n in range(12)]
    folder = devkit(tmp_path, {"trainval": stems[:8], "test": stems[8:]}, {stem: BOXES["a"] for stem in stems})
    assert available_splits(folder) == ("train", "val", "test")
    assert set(content(folder)) | set(content(folder, "val")) == set(stems[:8]) and set(content(folder, "test")) == set(stems[8:])


# --- files that stand for their data set ---


def coco(folder: Path, file: str, images: str, names=("a.png", "b.png", "c.png")) -> Path:
    rows = [{"id": n, "file_name": picture(folder / images / name).name, "width": 40, "height": 30}
            for n, name in enumerate(names)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [2, 3, 20, 10]} for n in range(len(names))]
    return write(folder / file, json.dumps({"images": rows, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}))


@pytest.mark.parametrize("layout", [("annotations/instances_{}2017.json", "{}2017"), ("{}/_annotations.coco.json", "{}"),
                                    ("{}.json", "images")])
def test_one_coco_file_leads_to_the_others(layout, tmp_path):
    files = [coco(tmp_path, layout[0].format(split), layout[1].format(split)) for split in ("train", "val")]
    for file in files:
        assert detect_format(file) == "coco" and available_splits(str(file)) == ("train", "val")
        assert [read_split(file, split).source for split in ("train", "val")] == files
    assert open_dataset(files[0], "val", training=False, image_size=(32, 32)).num_images == 3


def test_files_stand_for_their_data_set(tmp_path):
    file = coco(tmp_path / "one", "boxes.json", "pictures")
    assert len(content(file)) + len(content(file, "val")) == 3
    folder = darknet(tmp_path / "two")
    write(folder / "other.data", "nothing")
    (folder / "obj.data").rename(folder / "my.data")
    assert content(folder / "my.data").keys() == BOXES.keys()
    with pytest.raises(InputError, match=r"holds my.data, other.data; name the one that is meant"):
        detect_format(folder)
    write(folder / "cones.yaml", "names: [cat, dog]\ntrain: obj_train_data\nval: obj_valid_data\n")
    assert content(folder / "cones.yaml", "val").keys() == BOXES.keys()
    for name, text, message in (("x.json", "{}", "is no COCO file"), ("x.yaml", "a: 1", "says nothing of a data set"),
                                ("x.data", "names = gone.names", "names = gone.names points nowhere"),
                                ("x.txt", "", "is a file, not a folder")):
        with pytest.raises(InputError, match=message):
            detect_format(write(folder / name, text))
    with pytest.raises(InputError, match="is a file, not a folder"):
        detect_format(file, "yolo")


def test_folders_of_two_formats_ask_which_is_meant(tmp_path):
    folder = devkit(tmp_path, {"train": ["a", "b"], "val": ["c"]})
    coco(folder, "annotations/instances_train.json", "train")
    with pytest.raises(InputError, match=r"more than one format \(coco, voc\); choose one with data.format"):
        detect_format(folder)
    assert content(folder, format="voc").keys() == {"a", "b"}
    other = beside(tmp_path / "other", voc, ".xml")
    beside(other, labelme, ".json")
    with pytest.raises(InputError, match=r"more than one format \(voc, labelme\)"):
        detect_format(other)
    write(picture(other / "stray" / "s.png").with_suffix(".xml"), voc([]))
    with pytest.raises(InputError, match=r"in folders that are splits \(train, val\) and in others \(.*stray\)"):
        detect_format(other)


# --- Pascal VOC ---


def test_only_vocs_own_files_count_from_one(tmp_path):
    own = devkit(tmp_path / "own", {"train": ["a"], "val": ["b"]}, {"a": [("x", (1, 1, 40, 30))], "b": []},
                 database="The VOC2007 Database")
    assert content(own)["a"] == [("x", (0, 0, 40, 30))]
    other = devkit(tmp_path / "other", {"train": ["a"], "val": ["b"]}, {"a": [("x", (1, 1, 40, 30))], "b": []})
    assert content(other)["a"] == [("x", (1, 1, 40, 30))]


def test_difficult_objects_are_not_counted(tmp_path):
    folder = devkit(tmp_path, {"train": ["a"], "val": ["a"]}, {"a": BOXES["a"]}, extra="<difficult>1</difficult>")
    assert read_split(folder, "train").is_crowd.tolist() == [True]
    assert faults(folder) == {"difficult": ["a.xml:3"]}


def test_polygons_of_roboflow(tmp_path):
    polygon = "<polygon>" + "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in
                                    enumerate(((2, 3), (22, 3), (22, 13)), 1)) + "</polygon>"
    folder = devkit(tmp_path, {"train": ["a"], "val": ["a"]}, {"a": BOXES["a"]}, extra=polygon)
    mask = draw(read_split(folder, "train", with_masks=True).segmentations[0], *SIZE)
    assert mask[4, 20] and not mask[12, 4]


def test_faults_of_voc_files_are_found_with_file_and_line(tmp_path):
    folder = devkit(tmp_path, {"train": [*"abcdefgh"], "val": ["a"]}, {"a": BOXES["a"]})
    notes = folder / "Annotations"
    write(notes / "b.xml", "<annotation>\n<object>\n</annotation>")
    write(notes / "c.xml", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>\n<annotation>&e;</annotation>')
    write(notes / "d.xml", "<recipe/>")
    picture(folder / "JPEGImages" / "e.png")  # and no XML
    write(notes / "f.xml", voc(BOXES["a"], "other.jpg", size=""))
    picture(folder / "JPEGImages" / "f.jpg")
    write(notes / "g.xml", voc([("", (1, 2, 3, 4)), ("cat", ("1", "x", 3, 4))], "a.jpg"))
    write(notes / "h.xml", voc(BOXES["a"]))
    picture(folder / "JPEGImages" / "g.png")
    found = faults(folder)
    assert found == {
        "note_unreadable": ["Annotations/b.xml: not well-formed XML (mismatched tag: line 3, column 2)",
                            "Annotations/c.xml: line 1: it has a DOCTYPE, which these files have not"],
        "note_foreign": ["Annotations/d.xml"], "note_missing": ["Annotations/e.xml"],
        "note_without_size": ["Annotations/e.xml", "Annotations/f.xml"], "image_missing": ["h, of Annotations/h.xml"],
        "nameless_object": ["g.xml:3"],
        "bad_box": ["annotation with id 'g.xml:4' has 'bbox' ['1', 'x', '3', '4']"],
    }
    with pytest.raises(InputError, match=r"b\.xml: not well-formed"):
        read_split(folder, "train")
    check = check_dataset(folder, input_size=(32, 32))
    assert {found.name for found in check.findings} >= found.keys()


def test_the_nearest_picture_of_the_name_is_meant(tmp_path):
    for split in ("train", "val"):
        for camera in ("left", "right"):
            picture(tmp_path / "images" / split / camera / "1.png")
            write(tmp_path / "annotations" / split / camera / "1.xml", voc(BOXES["a"], "somebody/else.png"))
    assert sorted(read_split(tmp_path, "val").file_names) == ["images/val/left/1.png", "images/val/right/1.png"]
    picture(tmp_path / "images" / "val" / "left" / "1.jpg")
    assert faults(tmp_path, "val")["picture_ambiguous"] == [
        "annotations/val/left/1.xml: images/val/left/1.jpg, images/val/left/1.png"]


# --- LabelMe ---


def shapes(folder: Path, *given: dict, **extra) -> Path:
    for split in ("train", "val"):
        write(picture(folder / split / "p.png").with_suffix(".json"), labelme([], "p.png", shapes=list(given), **extra))
    return folder


def test_shapes_of_labelme(tmp_path):
    cut = np.zeros((4, 6), np.uint8)
    cut[1:3, 2:5] = 1
    buffer = io.BytesIO()
    Image.fromarray(cut.astype(bool)).save(buffer, "PNG")
    folder = shapes(
        tmp_path,
        {"label": "poly", "points": [[1, 1], [9, 1], [9, 7]]},  # of an old version: without a type
        {"label": "ring", "shape_type": "circle", "points": [[20, 15], [25, 15]]},
        {"label": "mask", "shape_type": "mask", "points": [[10, 20], [15, 23]],
         "mask": base64.b64encode(buffer.getvalue()).decode()},
        {"label": 7, "shape_type": "polygon", "group_id": 3, "points": [[30, 1], [34, 1], [34, 5], [30, 5]]},
        {"label": 7, "shape_type": "polygon", "group_id": 3, "points": [[36, 8], [39, 8], [39, 12]]},
        {"label": 7, "shape_type": "rectangle", "group_id": 4, "points": [[30, 20], [34, 28]]},
        {"label": "tip", "shape_type": "point", "points": [[3, 3]]},
        {"label": "edge", "shape_type": "linestrip", "points": [[3, 3], [5, 6]]},
        {"label": "poly", "shape_type": "polygon", "points": [[3, "x"]]},
    )
    findings = Findings()
    raw = read_split(folder, "train", findings=findings, with_masks=True)
    names = {category.id: category.name for category in raw.categories}
    found = {names[id_]: box for id_, box in zip(raw.category_ids[[0, 1, 2, 3]], raw.boxes.tolist())}
    assert found == {"poly": [1, 1, 9, 7], "ring": pytest.approx([15, 10, 25, 20]), "mask": [10, 20, 16, 24],
                     "7": [30, 1, 39, 12]}
    assert len(raw.boxes) == 5 and raw.segmentations[4] == b""
    whole = np.zeros(SIZE, bool)
    whole[21:23, 12:15] = True
    np.testing.assert_array_equal(draw(raw.segmentations[2], *SIZE), whole)
    assert draw(raw.segmentations[3], *SIZE)[[3, 9], [32, 38]].all()
    assert draw(raw.segmentations[1], *SIZE).sum() == pytest.approx(25 * np.pi, abs=3)
    assert {finding.name: finding.examples for finding in findings} == {"without_area": [
        "p.json: shape 7: 'point' with points [[3, 3]]", "p.json: shape 8: 'linestrip' with points [[3, 3], [5, 6]]",
        "p.json: shape 9: 'polygon' with points [[3, 'x']]"]}


def test_the_picture_inside_is_used_where_the_file_is_missing(tmp_path):
    data = base64.b64encode(picture(tmp_path / "x.png").read_bytes()).decode()
    (tmp_path / "x.png").unlink()
    folder = shapes(tmp_path / "data", {"label": "a", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]}, imageData=data)
    before = open_dataset(folder, "train", training=False, image_size=(32, 32))
    for number, name in enumerate(("..\\raw\\q.png", "q")):
        write(folder / "train" / f"q{number}.json", labelme(BOXES["a"], name, imageData=data))
    assert faults(folder) == {"embedded_picture": ["train/q.png in train/q0.json", "train/q1.png in train/q1.json"]}
    dataset = open_dataset(folder, "train", training=False, image_size=(32, 32))
    assert dataset.num_images == before.num_images + 2 == 3 and len(dataset[0][1]["boxes"]) == 1
    assert all(dataset[index][0].shape == (3, 32, 32) for index in range(3))
    check = check_dataset(folder, input_size=(32, 32), decode=True)
    assert {found.name for found in check.findings if found.split == "train"} >= {"embedded_picture", "identical"}
    write(folder / "train" / "r.json", labelme(BOXES["a"], "r.png"))
    write(folder / "train" / "s.json", "{\n]")
    found = faults(folder)
    assert found["image_missing"] == ["r.png, of train/r.json"]
    assert found["note_unreadable"][0].startswith("train/s.json: not valid JSON at line 2, column 1")


def test_classes_have_one_id_in_all_splits(tmp_path):
    folder = shapes(tmp_path, {"label": "b", "shape_type": "rectangle", "points": [[1, 1], [9, 9]]})
    write(folder / "train" / "p.json", labelme([("c", (1, 2, 3, 4))], "p.png"))
    ids = [{category.name: category.id for category in read_split(folder, split).categories} for split in ("train", "val")]
    assert ids[0] == ids[1] == {"b": 1, "c": 2}


def test_nothing_to_use(tmp_path):
    folder = shapes(tmp_path)
    with pytest.raises(InputError, match=r"no objects in its 1 annotation files \(p.json, ...\)"):
        read_split(folder, "train")
    (tmp_path / "odd").mkdir()
    os.symlink("loop.xml", tmp_path / "odd" / "loop.xml")
    with pytest.raises(InputError, match="no data set found"):
        detect_format(tmp_path / "odd")


ODD = [None, True, -1, 1.5, float("inf"), "", "\ud800", "a\0b", [], {}, [[1, 2], [3, 4]], ["mask"], "circle", "mask", "point"]


def changed(value, generator: random.Random):
    """Put something odd into the places of a value, by chance."""
    if generator.random() < 0.12:
        return generator.choice(ODD)
    if isinstance(value, dict):
        return {key: changed(part, generator) for key, part in value.items() if generator.random() > 0.05}
    return [changed(part, generator) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", ["voc", "labelme"])
def test_whatever_files_hold_is_a_finding_or_one_message(kind, tmp_path):
    picture(tmp_path / "train" / "p.png")
    note = voc(BOXES["b"], "p.png") if kind == "voc" else labelme(BOXES["b"], "p.png", imageData="no picture")
    for seed in range(150):
        generator = random.Random(seed)
        if kind == "labelme":
            text = json.dumps(changed(json.loads(note), generator))
        else:
            place, length = generator.randrange(len(note)), generator.randrange(12)
            text = note[:place] + generator.choice(["", "<object/>", "&x;", "nan", "9" * 30, "\0"]) + note[place + length:]
        write(tmp_path / "train" / f"p{seed % 2}.{'xml' if kind == 'voc' else 'json'}", text)
        try:
            dataset = open_dataset(tmp_path, "train", training=False, image_size=(32, 32), format=kind,
                                   with_masks=seed % 3 == 0)
            assert all(dataset[index][0].shape == (3, 32, 32) for index in range(len(dataset)))
        except InputError as error:
            assert str(error)
