"""The embedded data set: what is written, that it is the same everywhere, and that it appears complete or not at all."""

import hashlib
import json
import threading

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from rfdetr.errors import InputError
from rfdetr.shapes import dataset as shapes
from rfdetr.shapes.dataset import make_shapes
from rfdetr.shapes.scenes import CLASS_NAMES, MIN_VISIBLE, NUM_OBJECTS, draw_scene, signed_distance

SMALL = {"num_train": 6, "num_val": 2, "num_test": 1, "image_size": 128}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", **SMALL)


def _content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_folder_is_roboflow_coco(small_set, capsys):
    for split, num_images in (("train", 6), ("valid", 2), ("test", 1)):
        coco = COCO(str(small_set / split / "_annotations.coco.json"))
        assert len(coco.imgs) == num_images == len(list((small_set / split).glob("*.png")))
        assert {category["name"] for category in coco.dataset["categories"]} == set(CLASS_NAMES)
        for image in coco.imgs.values():
            with Image.open(small_set / split / image["file_name"]) as picture:
                assert picture.mode == "RGB" and picture.size == (image["width"], image["height"])


def test_box_and_area_are_those_of_the_mask(small_set, capsys):
    coco = COCO(str(small_set / "train" / "_annotations.coco.json"))
    seen = {}
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation).astype(bool)
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert annotation["area"] == mask.sum() > 0
        others = seen.setdefault(annotation["image_id"], np.zeros_like(mask))
        assert not (others & mask).any(), "a pixel shows one object only"
        others |= mask


def test_equal_calls_write_equal_bytes(small_set, tmp_path):
    assert _content(make_shapes(tmp_path / "again", **SMALL)) == _content(small_set)


def test_pictures_are_pinned():
    """Everybody trains on these pixels. A wanted change of the drawing raises DRAWING_VERSION and changes this number."""
    digest = hashlib.sha256()
    for number in range(4):
        scene = draw_scene(96, 0, 0, number)
        digest.update(scene.image.tobytes() + bytes(scene.labels) + np.stack(scene.masks).tobytes())
    assert digest.hexdigest()[:16] == "557af28283d336a2"


def test_seed_split_and_number_change_the_picture():
    pictures = [draw_scene(96, *entropy).image.tobytes() for entropy in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len(set(pictures)) == 4


def test_larger_set_begins_with_the_smaller_one(small_set, tmp_path):
    larger = make_shapes(tmp_path / "larger", **{**SMALL, "num_train": 8})
    for path in (small_set / "train").glob("*.png"):
        assert (larger / "train" / path.name).read_bytes() == path.read_bytes()


def test_scenes_have_enough_objects_and_some_have_none():
    counts = [len(draw_scene(64, 0, 0, number).labels) for number in range(150)]
    assert 0 < counts.count(0) < 15
    assert max(counts) <= NUM_OBJECTS[1]
    assert sum(NUM_OBJECTS[0] <= count for count in counts) > 0.9 * len(counts)


def test_objects_stay_visible():
    scenes = [draw_scene(128, 3, 0, number) for number in range(60)]
    shares = [mask.sum() / area for scene in scenes for mask, area in zip(scene.masks, scene.full_areas)]
    assert MIN_VISIBLE <= min(shares) < 0.8, "some are partly hidden, none too much"
    assert max(shares) == 1.0


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_shape_lies_between_its_circles(name):
    x, y = np.meshgrid(np.linspace(-1.2, 1.2, 241), np.linspace(-1.2, 1.2, 241))
    inside = signed_distance(name, x, y) < 0
    assert np.hypot(x, y)[inside].max() < 1.03
    assert 0.15 < inside.mean() * 2.4**2 / np.pi < 0.8


def test_unknown_shape_is_named():
    with pytest.raises(ValueError, match="'heart'"):
        signed_distance("heart", np.zeros(1), np.zeros(1))


def test_ready_set_is_used_again(small_set, monkeypatch):
    monkeypatch.setattr(shapes, "draw_scene", None)  # nothing is drawn
    assert make_shapes(small_set, **SMALL) == small_set


def test_other_parameters_are_refused(small_set):
    with pytest.raises(InputError, match="made with another num_images and seed; choose another folder, or delete"):
        make_shapes(small_set, **{**SMALL, "num_val": 3}, seed=7)


def test_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a shapes data set"):
        make_shapes(tmp_path, **SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "shapes").write_text("mine")
    with pytest.raises(InputError, match="is not a shapes data set"):
        make_shapes(tmp_path / "shapes", **SMALL)


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(shapes, "_write_split", fail)
    with pytest.raises(InputError, match="no space left"):
        make_shapes(tmp_path / "shapes", **SMALL)
    assert not any(tmp_path.iterdir())


def test_several_at_once_end_with_one_set(small_set, tmp_path):
    together, errors = threading.Barrier(3), []

    def make():
        together.wait()
        try:
            make_shapes(tmp_path / "shapes", **SMALL)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(3)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"], "no partial folder stays"
    assert _content(tmp_path / "shapes") == _content(small_set)


def test_marker_tells_how_the_set_was_made(small_set):
    marker = json.loads((small_set / "shapes.json").read_text())
    assert marker["num_images"] == {"train": 6, "valid": 2, "test": 1}
    assert marker["scene"]["class_names"] == list(CLASS_NAMES)
