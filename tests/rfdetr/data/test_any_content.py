"""Whatever an annotation file holds: `InputError` and findings are all that comes of it, and what is accepted can be used."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from rfdetr.data.annotations import clean
from rfdetr.data.coco import parse_json, split_from_content
from rfdetr.data.findings import Findings
from rfdetr.data.label_map import LabelMap
from rfdetr.data.mask_reading import read_masks
from rfdetr.data.segmentations import draw
from rfdetr.errors import InputError

HEIGHT, WIDTH = 20, 30
odd_values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 40), st.sampled_from([10**12, 10**400, -1e308, 1e308, 2e7, 0.5, 1.6]), st.floats(),
    st.sampled_from(["", "1", "1.0", " 2 ", "x", "nan", "\ud800", "\0", "a.png", "yes"]), st.just([]), st.just({}), st.just([[]]))
coordinates = st.one_of(st.integers(-5, 40), st.floats(-50, 50), odd_values)
polygons = st.lists(st.one_of(st.lists(st.integers(0, 30), min_size=6, max_size=12), st.lists(coordinates, max_size=9)), max_size=3)
run_values = st.one_of(st.lists(st.one_of(st.integers(-1, 700), odd_values), max_size=4), st.just([100, 20, 480]),
                       st.text(max_size=9), st.sampled_from(["T3D`?", "0", "TZ1"]))
runs = st.fixed_dictionaries({"size": st.one_of(st.just([HEIGHT, WIDTH]), st.just(["20", 30.0]), odd_values),
                              "counts": run_values})
masks = st.one_of(polygons, runs, coordinates, st.lists(st.lists(st.lists(coordinates, max_size=3), max_size=4), max_size=2))


def mostly(value, other=odd_values):
    """Draw the right value three times in four."""
    return st.one_of(st.just(value), st.just(value), st.just(value), other)


annotations = st.fixed_dictionaries({}, optional={
    "id": mostly(1), "image_id": mostly(1), "category_id": mostly(2), "area": mostly(90), "iscrowd": mostly(0),
    "bbox": mostly([2, 3, 10, 9], st.lists(coordinates, max_size=5)), "segmentation": masks})
images = st.fixed_dictionaries({
    "id": mostly(1), "file_name": mostly("a.png"), "height": mostly(HEIGHT), "width": mostly(WIDTH)})
categories = st.fixed_dictionaries({"id": mostly(2), "name": mostly("cat")}, optional={"supercategory": odd_values})
contents = st.fixed_dictionaries({
    "images": mostly([{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
                     st.lists(st.one_of(odd_values, images), max_size=3)),
    "annotations": st.one_of(st.lists(st.one_of(annotations, odd_values), max_size=6), odd_values),
    "categories": mostly([{"id": 2, "name": "cat"}, {"id": 1, "name": "dog"}],
                         st.lists(st.one_of(odd_values, categories), max_size=3)),
})


def check_content(content: dict) -> None:
    """Read a file's content, and look at what is accepted of it."""
    findings = Findings()
    try:
        content = parse_json(json.dumps(content).encode(), "a.json")
        raw = split_from_content(content, "a.json", "images", findings=findings, with_masks=True)
        label_map = LabelMap.from_categories(raw.categories, raw.category_ids.tolist())
        annotations, _ = clean(raw, label_map, drop_crowds=False)
    except InputError:
        return
    assert all(str(finding) and finding.examples for finding in findings)
    assert np.isfinite(annotations.boxes).all() and np.isfinite(annotations.areas).all()
    assert ((annotations.labels >= 0) & (annotations.labels < label_map.num_classes)).all()
    sizes = np.repeat(annotations.image_sizes, np.diff(annotations.offsets), axis=0)
    for row, (height, width) in enumerate(sizes.tolist()):
        if annotations.segmentations[row]:
            mask = draw(annotations.segmentations[row], height, width)
            assert mask.shape == (height, width) and (draw(annotations.segmentations[row], height, width) == mask).all()


QUICK = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@QUICK
@given(contents)
def test_any_content(content):
    check_content(content)


@pytest.mark.slow
@settings(QUICK, max_examples=10_000, derandomize=False)
@given(contents)
def test_any_content_often(content):
    check_content(content)


@QUICK
@given(st.lists(masks, max_size=5))
def test_any_mask(values):
    encoded, found = read_masks(list(values), np.tile((HEIGHT, WIDTH), (len(values), 1)))
    assert len(encoded) == len(values) and all(not encoded[row] for row in found["bad_mask"])
    for mask in filter(None, encoded):
        assert draw(mask, HEIGHT, WIDTH).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("seed", range(4))
def test_as_pycocotools_reads(seed, tmp_path, capsys):
    """Polygons, polygons in parts, run lengths and compressed ones of random shapes."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(60):
        parts = [(generator.uniform(-4, 34, 2 * generator.integers(3, 9))).round(2).tolist() for _ in range(1 + number % 2)]
        mask = generator.random((HEIGHT, WIDTH)) < 0.3
        changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False, append=~mask[-1, -1]))
        plain = {"size": [HEIGHT, WIDTH], "counts": np.diff(changes, prepend=0).tolist()}
        box = generator.uniform(0, 12, 4).round(2).tolist()
        rows.append({"id": number + 1, "image_id": 1, "category_id": 2, "bbox": box, "area": float(np.prod(box[2:])),
                     "iscrowd": number % 5 // 4, "segmentation": parts if number % 3 else plain})
    coco = COCO()
    coco.dataset = {"images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}], "annotations": rows,
                    "categories": [{"id": 2, "name": "cat"}]}
    coco.createIndex()
    expected = [coco.annToMask(row) for row in rows]
    for row in rows[::6]:
        runs = coco.annToRLE(row)
        row["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
    findings = Findings()
    content = parse_json(json.dumps(coco.dataset).encode(), "a.json")
    raw = split_from_content(content, "a.json", "images", findings=findings, with_masks=True)
    assert not list(findings) and raw.is_crowd.tolist() == [row["iscrowd"] == 1 for row in rows]
    np.testing.assert_allclose(raw.boxes, [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)])
    for encoded, mask in zip(raw.segmentations, expected):
        np.testing.assert_array_equal(draw(encoded, HEIGHT, WIDTH), mask)
        assert bool(encoded) == mask.any()
