"""YOLO files of every kind: what a line is, what data.yaml says, pictures that are listed twice, and whatever files may hold."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rfdetr.data import open_dataset
from rfdetr.data.findings import Findings
from rfdetr.data.formats import read_split
from rfdetr.data.segmentations import decode
from rfdetr.datacheck import check_dataset, write_fixed
from rfdetr.errors import InputError

BOX = "0 0.5 0.5 0.2 0.4"
NAMES = "train: train/images\nval: val/images\nnames: [cat, dog]\n"
HEIGHT, WIDTH = 60, 80


@pytest.fixture
def write(tmp_path):
    """`write({"a": label text}, data.yaml as text)` writes the split train, and one box in val, and returns the folder."""
    return lambda labels, content=NAMES: write_set(tmp_path / "yolo", labels, content)


def write_set(folder: Path, labels: dict[str, str | bytes], content: str | bytes = NAMES) -> Path:
    for split, files in (("train", labels), ("val", {"v": BOX})):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for index, (name, text) in enumerate(files.items()):
            grey = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 10 * index + len(split), np.uint8))
            grey.save(folder / split / "images" / f"{name}.png")
            (folder / split / "labels" / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "data.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(folder: Path, split: str = "train", **options):
    """The split, and the count of each finding."""
    findings = Findings()
    raw = read_split(folder, split, findings=findings, **options)
    return raw, {finding.name: finding.count for finding in findings}


def open_train(folder: Path, **options):
    return open_dataset(folder, "train", training=True, image_size=(32, 32), **options)


# What a line is

POINTS = [[0.45, 0.4], [0.5, 0.45], [0.55, 0.6], [0.42, 0.65]]
FLAT = " ".join(f"{x} {y}" for x, y in POINTS)
FLAGGED = " ".join(f"{x} {y} {flag}" for (x, y), flag in zip(POINTS, (2, 1, 2, 0)))
EXPECTED = [[32, 18, 48, 42]]


@pytest.mark.parametrize("shape, rest", [
    ("[4, 2]", FLAT), ("[4, 3]", FLAGGED), ("['4', \"3\"]", FLAGGED), ("\n  - 4\n  - 2", FLAT), ("[1, 2]", "0.5 0.5"),
    ("[1, 3]", "0.5 0.5 2"), ("[1, 2]", "-7 300"), ("[4, 2]", ""), ("[17, 3]", "0 0 0 " * 17),
])
def test_key_points_that_data_yaml_announces(write, shape, rest):
    raw, found = read(write({"a": f"{BOX} {rest}"}, f"{NAMES}kpt_shape: {shape}\n"), with_masks=True)
    np.testing.assert_allclose(raw.boxes, EXPECTED)
    assert not found and raw.segmentations == [b""] and np.isnan(raw.areas).all()


@pytest.mark.parametrize("rest", [FLAT, FLAGGED, "0.5 0.5", "0.5 0.45 2 0.45 0.4 1", "0.5 0.45 0.55 0.5", "0.93 4",
                                  "0.5 0.45 0 0 0.55 0.6", "0 0 " * 17, "0 0 0 " * 4, "0 0"])
def test_key_points_that_nobody_announced_are_refused(write, rest):
    folder = write({"a": f"{BOX} {rest}", "b": f"1 0.3 0.4 0.2 0.4 {rest.replace('0.5', '0.3').replace('0.4', '0.35')}\n{BOX}"})
    raw, found = read(folder)
    assert len(raw.boxes) == 1 and found.pop("label_suspect") == 2 and set(found) <= {"outside_picture"}
    with pytest.raises(InputError, match=r"look like a box with key points .*a.txt:1: 0 0.5 .*kpt_shape.*task: segment"):
        open_train(folder)


def test_key_points_of_an_even_number_of_fields_are_refused(write):
    with pytest.raises(InputError, match=r"wrong number of fields .*kpt_shape: \[number"):
        open_train(write({"a": f"{BOX} 0.5 0.5 2"}))


@pytest.mark.parametrize("extra", [FLAT, "0.9", FLAGGED + " 0.9"])
def test_other_lines_beside_key_points_are_refused(write, extra):
    raw, found = read(write({"a": f"{BOX} {FLAGGED}\n{BOX}\n{BOX} {extra}"}, f"{NAMES}kpt_shape: [4, 3]\n"))
    assert found == {"key_point_fields": 1} and raw.boxes.tolist() == EXPECTED * 2


def test_key_points_among_polygons_are_found(write):
    angles = np.linspace(0, 6, 9)
    rounds = "\n".join(f"0 {' '.join(f'{v:.4f}' for a in angles for v in (x + 0.1 * np.cos(a), 0.5 + 0.1 * np.sin(a)))}"
                       for x in np.linspace(0.2, 0.8, 30))
    raw, found = read(write({"a": rounds, "b": "\n".join([f"{BOX} {FLAT}"] * 12)}))
    assert found == {"label_suspect": 12} and len(raw.boxes) == 30


@pytest.mark.parametrize("unseen", ["", "0 0 " * 3])
def test_key_points_in_a_corner_of_large_boxes_are_found(write, unseen):
    faces = ["0.5 0.14 0.52 0.12 0.48 0.12", "0.47 0.2 0.55 0.21 0.52 0.3", "0.2 0.9 0.25 0.88 0.22 0.8"]
    raw, found = read(write({"a": "\n".join(f"0 0.5 0.5 0.7 0.9 {face} {unseen}" for face in faces)}))
    assert found == {"label_suspect": 3} and not len(raw.boxes)


def test_upright_boxes_as_polygons_are_polygons(write):
    rng = np.random.default_rng(0)
    lines = []
    for (x, y), (w, h) in zip(rng.uniform(0.2, 0.7, (60, 2)), rng.uniform(0.02, 0.2, (60, 2))):
        corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
        for rows in ([0, 1, 2, 3], [0, 1, 2, 3, 0], [2, 3, 0, 1], [0, 1, 1, 2, 3]):
            lines.append(f"0 {' '.join(f'{value:.6f}' for value in corners[rows].ravel())}")
    raw, found = read(write({"a": "\n".join(lines)}))
    assert not found and len(raw.boxes) == len(lines)


def test_zeros_behind_polygons_are_no_corners(write):
    """Tools that keep polygons in one array fill shorter ones up."""
    shapes = ["0.2 0.3 0.4 0.3 0.4 0.6 0.2 0.6 0.15 0.45", "0.2 0.3 0.4 0.3 0.4 0.6 0 0 0 0",
              "0 0 0.4 0.3 0.4 0.6 0.2 0.6 0.1 0.5"]
    raw, found = read(write({"a": "\n".join(f"0 {shape}" for shape in shapes)}), with_masks=True)
    plain, nothing = read(write({"a": "0 0.2 0.3 0.4 0.3 0.4 0.6"}), with_masks=True)
    assert found == {"label_padding": 1} and not nothing
    np.testing.assert_allclose(raw.boxes[1], plain.boxes[0])
    assert raw.areas[1] == pytest.approx(plain.areas[0]) and raw.segmentations[1] == plain.segmentations[0]


@pytest.mark.parametrize("task", ["segment", "obb"])
def test_task_says_that_lines_are_polygons(write, task):
    raw, found = read(write({"a": f"{BOX} {FLAT}\n0 0.3 0.4 0.5 0.4 0.5 1\n{BOX}"}, f"{NAMES}task: {task}\n"), with_masks=True)
    assert not found and [bool(mask) for mask in raw.segmentations] == [True, True, False]
    np.testing.assert_allclose(raw.boxes[1], [24, 24, 40, 60])


def test_turned_boxes_and_polygons_of_four_corners_are_the_same(write):
    rng = np.random.default_rng(0)
    centres, sides, angles = rng.uniform(0.3, 0.7, (50, 1, 2)), rng.uniform(0.02, 0.1, (50, 1, 2)), rng.uniform(0, 7, 50)
    turn = np.array([[np.cos(angles), -np.sin(angles)], [np.sin(angles), np.cos(angles)]]).transpose(2, 0, 1)
    corners = centres + (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * sides) @ turn
    text = "\n".join("0 " + " ".join(map(str, row)) for row in corners.reshape(50, 8))
    for content in (NAMES, NAMES + "task: obb\n"):
        raw, found = read(write({"a": text}, content))
        assert not found
        expected = np.stack([corners.min(axis=1), corners.max(axis=1)], axis=1) * [WIDTH, HEIGHT]
        np.testing.assert_allclose(raw.boxes.reshape(-1, 2, 2), expected)


@pytest.mark.parametrize("numbers", [(0.93, 0.4), (1, 17), (0, 300)])
def test_a_confidence_or_track_behind_the_box_is_ignored_with_a_warning(write, numbers):
    raw, found = read(write({"a": "\n".join(f"{BOX} {number}" for number in numbers) + f"\n{BOX}"}))
    assert found == {"label_extra": 2} and raw.boxes.tolist() == EXPECTED * 3


@pytest.mark.parametrize("angle", ["-0.7", "1.57", "89.5"])
def test_an_angle_behind_the_box_is_refused(write, angle):
    raw, found = read(write({"a": f"{BOX} {angle}\n{BOX} 0", "b": BOX}))
    assert found == {"label_angle": 2} and len(raw.boxes) == 1


@pytest.mark.parametrize("content", ["kpt_shape: 17", "kpt_shape: [17]", "kpt_shape: [17, 4]", "kpt_shape: [0, 2]",
                                     "kpt_shape: {a: 1}", "task: pose"])
def test_wrong_kpt_shape(write, content):
    with pytest.raises(InputError, match="data.yaml: .*'kpt_shape' (must be|is missing)"):
        open_train(write({"a": BOX}, NAMES + content))


# Odd lines

ODD = {
    "5e-1": ("0 5e-1 .5 2E-01 +0.4", None), "tabs": (f"\t{BOX}  \t\n".replace(" ", "\t"), None),
    "class 0.0": ("0.0 0.5 0.5 0.2 0.4", None),
    "class 0.7": ("0.7 0.5 0.5 0.2 0.4", "class_not_whole"), "class -1": ("-1 0.5 0.5 0.2 0.4", "class_out_of_range"),
    "name": ("cat 0.5 0.5 0.2 0.4", "label_not_a_number"), "inf": ("0 inf 0.5 0.2 0.4", "label_not_a_number"),
    "comment": ("# made by hand, 2024-01-01", "label_comma"), "short comment": ("# cat", "label_fields"),
    "underscore": ("0 0_1 0.5 0.2 0.4", "label_not_a_number"), "other digits": ("0 ０.5 0.5 0.2 0.4", "label_not_a_number"),
    "utf-16": (BOX.encode("utf-16"), "label_not_text"), "utf-16-le": (BOX.encode("utf-16-le"), "label_not_text"),
    "binary": (bytes(range(256)), "label_not_text"), "latin-1": ("# größe".encode("latin-1"), "label_not_text"),
    "huge class": (f"{'9' * 400} 0.5 0.5 0.2 0.4", "label_not_a_number"),
    "1e300": ("1e300 0.5 0.5 0.2 0.4", "class_out_of_range"),
    "old Mac": (f"{BOX}\r{BOX}", "label_crlf"), "mark inside": (f"{BOX}\n\ufeff{BOX}", "label_not_a_number"),
    "huge file": (b" " * (2**24 + 1), "label_huge"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_lines(write, name):
    text, kind = ODD[name]
    raw, found = read(write({"a": text, "b": BOX}))
    assert found == ({kind: 1} if kind else {})
    np.testing.assert_allclose(np.unique(raw.boxes, axis=0), EXPECTED)


def test_label_files_that_cannot_be_read(write):
    folder = write({"a": BOX, "b": BOX})
    (folder / "train/labels/b.txt").unlink()
    (folder / "train/labels/b.txt").symlink_to("nowhere")
    (folder / "train/labels/notes.txt").mkdir()
    assert read(folder)[1] == {"label_unreadable": 1}


# data.yaml

WORDS = "no yes on off y True 12:30 1e3 010 0x1F 1_000 null ~ 2024-01-01 1.0 .inf +1".split()


def test_names_keep_their_spelling(write):
    for names in (f"[{', '.join(WORDS)}]", "".join(f"\n  - {word}" for word in WORDS),
                  "".join(f"\n  {index}: {word}" for index, word in enumerate(WORDS)),
                  "".join(f"\n  '{index}': \"{word}\"" for index, word in enumerate(WORDS))):
        raw, found = read(write({"a": BOX}, f"train: train/images\nnc: '{len(WORDS)}'\nnames: {names}\n"))
        assert [category.name for category in raw.categories] == WORDS and not found
        assert [category.id for category in raw.categories] == list(range(len(WORDS)))


@pytest.mark.parametrize("content, names", [
    ("base: &base {names: [cat, dog]}\n<<: *base", ["cat", "dog"]), ("names: &n [cat, dog]\nalias: *n", ["cat", "dog"]),
    ("names: [!!str no, 'no no']", ["no", "no no"]), ("nc: 2\nnames: null", ["class_0", "class_1"]),
    ("nc: '2'", ["class_0", "class_1"]),
    ("names: {00: cat, 01: dog}", ["cat", "dog"]), ("names: [cat, cat]", ["cat", "cat"]), ("names: {1: b, 0: a}", ["a", "b"]),
    ("names: [cat, '']", ["cat", "class_1"]),
])
def test_other_ways_to_name_classes(write, content, names):
    raw, _ = read(write({"a": BOX}, f"train: train/images\n{content}\n"))
    assert [category.name for category in raw.categories] == names


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)) + "names: *a11"


@pytest.mark.parametrize("content, message", [
    ("names: [{0: cat}, {1: dog}]", "'names' must be a list"), ("names: {cat: 0, dog: 1}", "'names' must be a list"),
    ("names: {-1: cat}", "'names' must be a list"), ("names: {0: cat, 00: dog}", "'names' must be a list"),
    ("names: {0x1: cat}", "'names' must be a list"), ("names: []", "'names' must be a list"),
    ("names: cat", "'names' must be a list"),
    ("nc: two", "'names' must be .* it is missing"), ("nc: -2", "it is missing"), (f"nc: {'9' * 5000}", "it is missing"),
    ("nc: 3\nnames: [cat, dog]", "nc is 3, but there are 2 names"), ("nc: [2]\nnames: [cat, dog]", r"nc is \['2'\], but"),
    ("names: [cat]\nnames: [dog]", "'names' stands there twice"), ("names: {0: cat, 0: dog}", "'0' stands there twice"),
    ("names: !!python/object:os.system [cat]", "not valid YAML .*constructor"), ("names: !!int 2", "not valid YAML"),
    ("names: &a [*a]", "'names' must be a list"), (BOMB, "'names' must be a list"), (f"names: {'[' * 1000}", "not valid YAML"),
    ("names: [cat]\nx: *y", "not valid YAML .*alias"), ("names: [cat]\n? [a]\n: b", "not valid YAML"),
    ("names: [cat]\n\x01", "not valid"),
    ("names: [cat]\npath: [a, {b: c}]", "'path' must be a path"), ("names: [cat]\nval: {a: b}", "'val' must be a path"),
    ("names: [cat]\nval: [[a]]", "'val' must be a path"), ('names: [cat]\nval: "a\\0b"', "'val' must be a path"),
])
def test_other_data_yaml_is_refused_in_one_message(write, content, message):
    folder = write({"a": BOX}, f"train: train/images\n{content}\n")
    with pytest.raises(InputError, match=rf"data.yaml: (?s:.*){message}") as caught:
        open_train(folder)
    assert len(str(caught.value)) < 800


def test_data_yaml_in_utf_16(write):
    with pytest.raises(InputError, match="data.yaml: not valid YAML"):
        open_train(write({"a": BOX}, NAMES.encode("utf-16")))


@pytest.mark.parametrize("train", ["..\\train\\images", "C:\\Users\\me\\train\\images", "/content/data/train/images"])
def test_paths_of_another_machine_are_found_by_their_end(write, train):
    raw, found = read(write({"a": BOX}, f"names: [cat, dog]\npath: /content/data\ntrain: {train}\n"))
    assert found == {"split_path_moved": 1} and raw.file_names == ["train/images/a.png"]


@pytest.mark.parametrize("places, lists, lines", [
    ({"obj_train_data": ""}, {"obj.names": "cat\ndog\n", "obj.data": "classes = 2"},
     "train: obj_train_data\nval: FOLDER_OF_OTHER"),
    ({"images": "labels"}, {"classes.txt": "cat\r\ndog"}, "train: images\nval: FOLDER_OF_OTHER"),
    ({"valid/images": "valid/labels", "train/images": "train/labels"}, {"classes.txt": "cat\ndog"},
     "train: train/images\nval: valid/images"),
    ({".": ""}, {"classes.txt": "cat\ndog"}, "train: .\nval: FOLDER_OF_OTHER"),
])
def test_labels_without_data_yaml_are_refused_with_the_lines_that_it_needs(tmp_path, places, lists, lines):
    for images, labels in places.items():
        for folder in (images, labels or images):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / images / "1.png")
        (tmp_path / (labels or images) / "1.txt").write_text(BOX)
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f'no data.yaml .*:\nnames: \\["cat", "dog"\\]\n{lines}'):
        open_train(tmp_path)


# Pictures and their label files

@pytest.mark.parametrize("content, lists", [
    ("train: train.txt", {"train": "./train/images/a.png\n" + "./train/images/b.png\ntrain/images/b.png\n" * 2}),
    ("train: [one.txt, two.txt]", {"one": "train/images/a.png\ntrain/images/b.png\n", "two": "train/images/b.png\n" * 3}),
    ("train: [train/images, two.txt]", {"two": "train/images/b.png\n" * 3}),
])
def test_a_picture_listed_several_times_is_trained_on_as_often(write, content, lists):
    polygon = "1 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5"
    folder = write({"a": BOX, "b": f"{BOX}\n{polygon}"}, f"names: [cat, dog]\nval: train.txt\n{content}\n")
    (folder / "train.txt").write_text("train/images/a.png\n")
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    dataset = open_train(folder, with_masks=True)
    names = [dataset.image_path(index).name for index in range(len(dataset))]
    assert names == ["a.png"] + ["b.png"] * 4
    assert [len(dataset[index][1]["labels"]) for index in range(5)] == [1, 2, 2, 2, 2]
    assert [dataset.image_id(index) for index in range(5)] == list(range(5))
    for index in range(1, 5):
        assert dataset[index][1]["labels"].tolist() == [0, 1]
        assert dataset[index][1]["masks"].sum(dim=(1, 2)).tolist() == [0, 24 * 24]
    assert read(folder)[1] == {"listed_again_for_training": 3}


def test_a_picture_listed_several_times_is_scored_once(write, caplog):
    folder = write({"a": BOX, "b": BOX}, "names: [cat, dog]\ntrain: train/images\nval: [val.txt, val.txt]\n")
    (folder / "val.txt").write_text("train/images/a.png\ntrain/images/b.png\ntrain/images/b.png\n")
    val = open_dataset(folder, "val", training=False, image_size=(32, 32))
    assert (len(val), val.num_boxes) == (2, 2) and "4 lines and paths that list an image again, which is scored" in caplog.text


def test_findings_of_a_picture_listed_twice_count_once(write):
    folder = write({"a": f"{BOX}\n0 1", "b": BOX}, "names: [cat, dog]\ntrain: train.txt\n")
    (folder / "train.txt").write_text("train/images/a.png\n" * 3)
    assert read(folder)[1] == {"label_fields": 1, "listed_again_for_training": 2}


def test_the_check_and_its_corrected_copy_know_repeated_pictures(write, tmp_path):
    folder = write({"a": BOX}, "names: [cat, dog]\ntrain: train.txt\nval: val/images\n")
    (folder / "train.txt").write_text("train/images/a.png\n" * 3)
    check = check_dataset(folder, input_size=(64, 64))
    assert len(check.splits["train"].raw.image_ids) == 3
    assert not {"listed_twice", "identical"} & {finding.name for finding in check.findings}
    assert write_fixed(check, tmp_path / "fixed").is_file()


def test_negative_sizes_are_boxes_from_another_corner(write, tmp_path):
    check = check_dataset(write({"a": f"0 0.5 0.5 -0.2 0.4\n0 0.5 0.3 0.1 -0.1\n{BOX}"}), input_size=(64, 64))
    assert {found.name: found.count for found in check.findings if found.kind.group == "boxes"} == {"turned": 2}
    fixed = read_split(write_fixed(check, tmp_path / "fixed").parent, "train", paths={
        "train": {"annotations": "train.json", "images": str(tmp_path / "yolo")}}, allow_outside=True)
    np.testing.assert_allclose(fixed.boxes[0], EXPECTED[0])


def test_two_pictures_of_one_name_share_a_label_file(write):
    folder = write({"a": BOX, "b": BOX})
    Image.open(folder / "train/images/a.png").save(folder / "train/images/a.jpg")
    raw, found = read(folder)
    assert found == {"label_shared": 1} and len(raw.boxes) == 3


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_links_in_a_circle_end(write):
    folder = write({"a": BOX})
    for name, target in (("up", ".."), ("here", "."), ("val", "../../val/images")):
        (folder / "train/images" / name).symlink_to(target)
    (folder / "val/images/back").symlink_to("../../train/images")
    (folder / "labels").symlink_to("train/labels")
    raw, _ = read(folder)
    assert raw.file_names == ["train/images/a.png", "train/images/val/v.png"]
    (folder / "train/images/deeper").mkdir()
    (folder / "train/images/a.png").rename(folder / "train/images/deeper/a.png")
    (folder / "train/images/again").symlink_to("deeper")
    (folder / "train/images/nothing.png").symlink_to("nothing.png")
    raw, found = read(folder)
    assert raw.file_names == ["train/images/deeper/a.png", "train/images/nothing.png", "train/images/val/v.png"]
    assert found["no_image_size"] == 1


# Whatever files may hold

def independent(text: str) -> tuple[list, list]:
    """Read valid lines: class ids, boxes and polygons in fractions, one line after the other."""
    rows = [[float(word) for word in line.split()] for line in text.splitlines() if line.split()]
    boxes, polygons = [], []
    for _, *numbers in rows:
        if len(numbers) <= 5:
            x, y, w, h = numbers[:4]
            boxes.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
            polygons.append(None)
        else:
            xs, ys = numbers[::2], numbers[1::2]
            boxes.append((min(xs), min(ys), max(xs), max(ys)))
            polygons.append([value * side for x, y in zip(xs, ys) for value, side in ((x, WIDTH), (y, HEIGHT))])
    return [int(row[0]) for row in rows], list(zip(boxes, polygons))


unit = st.floats(0, 1).map(lambda value: round(value, 6))
valid_line = st.sampled_from([4, 5, 6, 8, 10, 24]).flatmap(lambda count: st.tuples(*[unit] * count)).filter(
    lambda row: len(row) < 10 or any(row[-4:]))  # zeros there are padding
ends = st.sampled_from(["\n", "\r\n", "\n\n", " \n"])
odd = st.sampled_from(["nan", "inf", "cat", "#", "0,5", "1e999", "\x00", "٣", "1_0", "'", "\ufeff", "9" * 400])
numbers = st.one_of(st.integers(-2, 3).map(str), st.floats().map(repr), unit.map(str), odd)
any_line = st.one_of(st.lists(numbers, max_size=14).map(" ".join),
                     st.lists(unit.map(str), min_size=4, max_size=12).map(lambda row: f"1 {' '.join(row)}"))
any_label = st.one_of(st.lists(any_line, max_size=6).map("\n".join).map(str.encode), st.binary(max_size=60))
SIGNS = ["train/images", "&a", "*a", "<<: *a", "!!int 3", "!!binary", "!x", "names", "|", "? a", "-", "{", "[", "]", "}", "'",
         "0", "1", "17", "9" * 5000, "[4, 2]", "segment", "\t", "\x85", "train.txt"]
words = st.one_of(st.sampled_from(WORDS + SIGNS), st.text(max_size=5))


def collections(inner):
    pairs = st.lists(st.tuples(words, inner), max_size=3)
    return st.one_of(st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
                     pairs.map(lambda items: "{" + ", ".join(f"{key}: {item}" for key, item in items) + "}"))


keys = st.sampled_from(["names", "nc", "train", "val", "path", "kpt_shape", "task", "x", "<<"])
rows = st.lists(st.tuples(keys, st.recursive(words, collections, max_leaves=6)), max_size=4)
text_of_rows = rows.map(lambda pairs: "".join(f"{key}: {item}\n" for key, item in pairs))
any_text = st.one_of(text_of_rows, text_of_rows.map(NAMES.__add__), st.text(max_size=40))
any_yaml = any_text.map(lambda text: text.encode(errors="replace"))


@pytest.fixture
def small_set(tmp_path):
    """`small_set(label, content)` changes the one label file and data.yaml, and returns the folder."""
    folder = write_set(tmp_path / "small", {"a": BOX})

    def change(label: bytes, content: bytes = NAMES.encode()) -> Path:
        (folder / "train/labels/a.txt").write_bytes(label)
        (folder / "data.yaml").write_bytes(content)
        return folder
    return change


def check_what_is_read(folder: Path) -> None:
    try:
        raw, _ = read(folder, with_masks=True)
    except InputError as error:
        assert str(error).strip()
        return
    assert np.isfinite(raw.boxes).all() and set(raw.category_ids.tolist()) <= {category.id for category in raw.categories}
    assert all(isinstance(category.name, str) and category.name.strip() for category in raw.categories)
    assert len(raw.segmentations) == len(raw.boxes) == len(raw.image_indices) and (raw.image_indices < len(raw.image_ids)).all()


def check_valid_files(small_set, lines: list, line_end: str) -> None:
    text = "".join(f"{index % 2} {' '.join(map(repr, row))}{line_end}" for index, row in enumerate(lines))
    classes, expected = independent(text)
    raw, found = read(small_set(text.encode(), f"{NAMES}task: segment\n".encode()), with_masks=True)
    assert raw.category_ids.tolist() == classes and set(found) <= {"label_extra", "label_crlf", "label_empty_line"}
    boxes = np.reshape([box for box, _ in expected], (-1, 2, 2)) * [WIDTH, HEIGHT]
    np.testing.assert_allclose(raw.boxes.reshape(-1, 2, 2), boxes, atol=1e-9)
    for (_, polygon), segmentation in zip(expected, raw.segmentations):
        np.testing.assert_allclose(decode(segmentation), [] if polygon is None else [polygon], atol=1e-9)


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
class TestWhateverFilesHold:
    """Each is read as it stands there, or refused in one message."""

    def test_labels(self, small_set, count):
        run(count, lambda label: check_what_is_read(small_set(label)), label=any_label)

    def test_data_yaml(self, small_set, count):
        run(count, lambda content: check_what_is_read(small_set(BOX.encode(), content)), content=any_yaml)

    def test_valid_files(self, small_set, count):
        run(count, lambda lines, line_end: check_valid_files(small_set, lines, line_end),
            lines=st.lists(valid_line, max_size=8), line_end=ends)


def run(count: int, check, **strategies) -> None:
    chosen = settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    chosen(given(**strategies)(check))()
