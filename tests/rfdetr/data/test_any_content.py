"""Whatever an annotation file holds: `InputError` and findings are all that comes of it, and what is accepted can be used."""

import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from rfdetr.data.annotations import clean
from rfdetr.data.coco import split_from_content
from rfdetr.data.findings import Findings
from rfdetr.data.json_file import parse_json
from rfdetr.data.label_map import LabelMap
from rfdetr.data.mask_reading import read_masks
from rfdetr.data.segmentations import draw
from rfdetr.datacheck.boxes import check_boxes
from rfdetr.datacheck.classes import check_classes
from rfdetr.datacheck.fix import fixed_content
from rfdetr.datacheck.masks import check_masks
from rfdetr.datacheck.split_check import SplitCheck
from rfdetr.errors import InputError

HEIGHT, WIDTH = 20, 30
odd_values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 40), st.sampled_from([10**12, 10**400, -1e308, 1e308, 2e7, 0.5, 1.6]), st.floats(),
    st.sampled_from(["", "1", "1.0", " 2 ", "x", "nan", "\ud800", "\0", "a.png", "yes"]),
    st.builds(list), st.builds(dict), st.builds(lambda: [[]]))
coordinates = st.one_of(st.integers(-5, 40), st.floats(-50, 50), odd_values)
corners = st.lists(st.integers(0, 30), min_size=6, max_size=12)
polygons = st.lists(st.one_of(corners, st.lists(coordinates, max_size=9)), max_size=3)
run_values = st.one_of(st.lists(st.one_of(st.integers(-1, 700), odd_values), max_size=4), st.just([100, 20, 480]),
                       st.text(max_size=9), st.sampled_from(["T3D`?", "0", "TZ1"]))
runs = st.fixed_dictionaries({"size": st.one_of(st.just([HEIGHT, WIDTH]), st.just(["20", 30.0]), odd_values),
                              "counts": run_values})
masks = st.one_of(polygons, runs, coordinates, st.lists(st.lists(st.lists(coordinates, max_size=3), max_size=4), max_size=2))


def change(name: str, key: str, values: st.SearchStrategy) -> st.SearchStrategy:
    """Draw what to put in the place of a value: the list of the file, the number of the entry, its key and the value."""
    return st.tuples(st.just(name), st.integers(0, 11), st.just(key), values)


changes = st.lists(max_size=8, elements=st.one_of(
    change("annotations", "bbox", st.one_of(odd_values, st.lists(coordinates, min_size=4, max_size=4))),
    change("annotations", "segmentation", masks), change("annotations", "segmentation", polygons),
    change("annotations", "segmentation", runs),
    *(change("annotations", key, odd_values) for key in ("image_id", "category_id", "area", "iscrowd", "")),
    *(change("images", key, odd_values) for key in ("id", "file_name", "height", "width", "")),
    *(change("categories", key, odd_values) for key in ("id", "name", "supercategory", "")),
))  # fmt: skip


def changed_content(spoiled: list[tuple]) -> dict:
    """A good file with some other values; an empty key stands for the entry as a whole."""
    content = {"images": [{"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
                          for number in (1, 2, 3)],
               "categories": [{"id": 2, "name": "cat"}, {"id": 1, "name": "dog", "supercategory": "cat"}],
               "annotations": [{"id": number, "image_id": 1 + number % 3, "category_id": 1 + number % 2,
                                "bbox": [number, 3, 10, 9], "area": 90, "iscrowd": 0,
                                "segmentation": [[number, 3, number + 10, 3, number + 10, 12]]}
                               for number in range(12)]}
    for name, place, key, value in spoiled:
        rows = content[name]
        place %= len(rows)
        if not key:
            rows[place] = value
        elif isinstance(rows[place], dict):
            rows[place][key] = value
    return content


def check_content(content: dict) -> None:
    """Read a file's content, and look at what is accepted of it."""
    findings = Findings()
    try:
        content = parse_json(io.BytesIO(json.dumps(content).encode()), "a.json")
        raw = split_from_content(content, "a.json", "images", findings=findings, with_masks=True)
        label_map = LabelMap.from_categories(raw.categories, raw.category_ids.tolist())
        annotations, _ = clean(raw, label_map, training=False)
        split = SplitCheck("train", raw, findings)
        check_classes({"train": split})
        check_boxes(split, (64, 64), num_queries=2)
        check_masks(split, quick=False)
        assert json.dumps(fixed_content(split))
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
@given(changes)
def test_any_content(spoiled):
    check_content(changed_content(spoiled))


@pytest.mark.slow
@settings(QUICK, max_examples=10_000, derandomize=False)
@given(changes)
def test_any_content_often(spoiled):
    check_content(changed_content(spoiled))


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
    content = parse_json(io.BytesIO(json.dumps(coco.dataset).encode()), "a.json")
    raw = split_from_content(content, "a.json", "images", findings=findings, with_masks=True)
    assert not list(findings) and raw.is_crowd.tolist() == [row["iscrowd"] == 1 for row in rows]
    np.testing.assert_allclose(raw.boxes, [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)])
    for encoded, mask in zip(raw.segmentations, expected):
        np.testing.assert_array_equal(draw(encoded, HEIGHT, WIDTH), mask)
        assert bool(encoded) == mask.any()
