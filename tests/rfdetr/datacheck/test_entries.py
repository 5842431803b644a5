"""Entries of COCO files that are not what they should be: each kind, made in clean data, is found as that and nothing else."""

import json

import numpy as np
import pytest


def runs_of(mask: np.ndarray) -> dict:
    """Uncompressed run lengths of a mask (h, w)."""
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False, append=~mask[-1, -1]))
    return {"size": list(mask.shape), "counts": np.diff(changes, prepend=0).tolist()}


def fractions(data, picture):
    for annotation in data.content["train"]["annotations"]:
        annotation["bbox"] = (np.array(annotation["bbox"]) / (160, 120, 160, 120)).tolist()
    return {("train", "fractions"): 24}


def empty_masks(data, picture):
    values = [[[]], [], None, {}, [[10, 20, 50, 20, 50, 20]], {"size": [120, 160], "counts": [120 * 160]},
              [[400, 300, 440, 300, 420, 340]], [[10.2, 20.2, 10.3, 20.2, 10.3, 20.3]]]
    for number, value in enumerate(values):
        data.cat(number)["segmentation"] = value
    return {("train", "without_mask"): len(values), ("train", "far_polygon"): 1}


def short_polygon(data, picture):
    data.cat(2)["segmentation"] = [[10, 20, 50, 50]]
    data.cat(3)["segmentation"].append([10, 20])
    return {("train", "short_polygon"): 2, ("train", "without_mask"): 1}


def mask_nesting(data, picture):
    corners = [10, 20, 50, 20, 50, 50, 10, 50]
    points = np.reshape(corners, (4, 2)).tolist()
    wrapped = [[point] for point in points]  # as OpenCV has contours
    values = [corners, points, [points], wrapped, [wrapped], [[corners]], [[[corners]]]]
    for number, value in enumerate(values):
        data.cat(number)["segmentation"] = value
    return {("train", "mask_nesting"): len(values)}


def mask_fractions(data, picture):
    for number in range(12):
        for annotation in (data.cat(number), data.dog(number)):
            annotation["segmentation"] = [(np.array(annotation["segmentation"][0]) / np.tile((160, 120), 4)).tolist()]
    return {("train", "mask_fractions"): 24}


def far_polygon(data, picture):
    data.cat(2)["segmentation"] = [[10, 20, 50, 20, 50, 50, -1e200, 50.0, 10, 50]]
    return {("train", "far_polygon"): 1, ("train", "mask_box"): 1}


def turned(data, picture):
    data.cat(2)["bbox"] = [50, 50, -40, -30]
    return {("train", "turned"): 1}


def corners_by_area(data, picture):
    for number in range(12):
        data.cat(number)["bbox"] = [10, 20, 50, 50]
    return {("train", "box_format"): 12}


def corners_by_polygons(data, picture):
    for number in range(12):
        x, y, width, height = data.dog(number)["bbox"]
        data.dog(number).update(bbox=[x, y, x + width, y + height], area=100)
    return {("train", "box_format"): 12}


def corners_by_edges(data, picture):
    for annotation in data.content["train"]["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation.update(bbox=[x, y, x + width, y + height], area=None, segmentation=[])
    return {("train", "box_format"): 24}


def centres_by_polygons(data, picture):
    for annotation in data.content["train"]["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation.update(bbox=[x + width / 2, y + height / 2, width, height], area=100)
    return {("train", "box_format"): 24}


def other_orders(data, picture):
    for number, annotation in enumerate(data.content["train"]["annotations"]):
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [[x, x + width, y, y + height], [y, x, y + height, x + width], [y, x, height, width]][number % 3]
    return {("train", "box_format"): 24}


def area_box(data, picture):
    data.cat(2)["area"] = 4 * 40 * 30
    data.cat(3)["area"] = 0.5
    return {("train", "area_box"): 2}


def corner_fractions(data, picture):
    for annotation in data.content["train"]["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [x / 160, y / 120, (x + width) / 160, (y + height) / 120]
    return {("train", "fractions"): 24, ("train", "box_format"): 24}


def percent(data, picture):
    for annotation in data.content["train"]["annotations"]:
        annotation["segmentation"] = [(np.array(annotation["segmentation"][0]) / np.tile((1.6, 1.2), 4)).tolist()]
    return {("train", "mask_place"): 24}


def rows_first(data, picture):
    for annotation in data.content["train"]["annotations"]:
        x, y, width, height = annotation["bbox"]
        mask = np.zeros((160, 120), dtype=bool)
        mask.ravel()[(np.arange(y, y + height)[:, None] * 160 + np.arange(x, x + width)).ravel()] = True
        runs = np.diff(np.flatnonzero(np.diff(mask.ravel(), prepend=False, append=False)), prepend=0, append=mask.size)
        annotation["segmentation"] = {"size": [120, 160], "counts": runs.tolist()}
    return {("train", "mask_place"): 24}


def bad_mask(data, picture):
    right = runs_of(np.eye(120, 160, dtype=bool))
    values = [
        {"size": [60, 80], "counts": [4800]}, {"size": [160, 120], "counts": [19200]}, {"size": [120, 160]}, {"counts": [19200]},
        {**right, "counts": right["counts"][:-1]}, {**right, "counts": [-1, 19201]}, {**right, "counts": [0.5, 19199.5]},
        {**right, "counts": [[19200]]}, {**right, "counts": "Rc0?]1000"}, {**right, "counts": "~~"}, {**right, "counts": "é"},
        {**right, "counts": 7}, {**right, "counts": "o" * 40 + "0"}, {**right, "counts": ""}, {**right, "size": "120, 160"},
        [["a", 1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, 6, 7]], [[1, 2, float("nan"), 4, 5, 6]], "polygon", 3, True, [None],
        [[1, [2], 3]], [{"x": 1, "y": 2}], json.loads("[" * 900 + "]" * 900), [[1, 10**400, 3, 4, 5, 6]],
    ]  # fmt: skip
    data.content["train"]["annotations"] += [{**data.cat(2), "segmentation": value} for value in values]
    return {("train", "bad_mask"): len(values)}


def bad_crowd(data, picture):
    values = ["yes", 2, [1], {}, float("nan"), 0.5, "", -1, "0", "1", 1.0, 0.0, 0, True, False, None, " 0 "]
    for annotation, value in zip(data.content["train"]["annotations"], values):
        annotation["iscrowd"] = value
    return {("train", "bad_crowd"): 8, ("train", "crowd"): 3}


def bad_area(data, picture):
    values = ["big", -1, [1], float("nan"), 1e300, True, 10**400, "1200", None]
    for annotation, value in zip(data.content["train"]["annotations"], values):
        annotation["area"] = value
    return {("train", "bad_area"): 7}


def bad_boxes(data, picture):
    values = [[10, 20, 40], [10, 20, 40, "x"], [10, 20, 40, 10**400], {"x": 1}, None, "10,20,40,30", [10, 20, 40, True],
              [[10, 20, 40, 30]], ["10", "20.0", " 4e1 ", 30]]
    for number, value in enumerate(values):
        data.cat(number)["bbox"] = value
    return {("train", "bad_box"): 8, ("train", "few_objects"): 1}


def other_numbers_for_ids(data, picture):
    values = [1.6, True, "one", None, [1], float("nan"), 10**400, "1_0", "1", 1.0, " 1 ", "1.0"]
    for number, value in enumerate(values):
        data.cat(number)["category_id"] = value
    return {("train", "unknown_category"): 8, ("train", "few_objects"): 1}


def category_name(data, picture):
    for split in data.content:
        data.content[split]["categories"][2]["name"] = None
        data.content[split]["categories"][1]["name"] = "\ud800"
    return {("train", "category_name"): 2, ("val", "category_name"): 2}


def not_an_entry(data, picture):
    data.content["train"]["annotations"] += [3, None, []]
    return {("train", "not_an_entry"): 3}


def image_entry(data, picture):
    values = [{"file_name": "\ud800.jpg"}, {"file_name": 7}, {"width": 10**12}, {"height": 0.5}, {"id": "x"},
              {"width": 10**6, "height": 10**6}]
    for number, value in enumerate(values):
        data.path("train", f"train_{number}.jpg").unlink()
        data.image(number).update(value)
    del data.content["train"]["annotations"][2 * 4 : 2 * 5]
    return {("train", "image_entry"): 6, ("train", "few_objects"): 2}


KINDS = [
    empty_masks, short_polygon, mask_nesting, mask_fractions, percent, rows_first, far_polygon, bad_mask, turned, fractions,
    corners_by_area,
    corners_by_polygons, corners_by_edges, centres_by_polygons, other_orders, area_box, corner_fractions, bad_crowd,
    bad_area, bad_boxes, other_numbers_for_ids, category_name, not_an_entry, image_entry,
]  # fmt: skip


@pytest.mark.parametrize("spoil", KINDS, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_entries_are_found_as_what_they_are(spoil, quick, dataset, found, picture):
    expected = spoil(dataset, picture)
    if quick:
        expected.pop(("train", "mask_box"), None)  # nothing is drawn
    assert found(dataset.check(quick=quick, with_masks=True)) == expected
