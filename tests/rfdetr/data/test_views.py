"""The geometry of the augmentation, for boxes and masks, against the goldens."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from rfdetr.data.segmentations import draw, draw_view, encode
from rfdetr.data.views import FULL_VIEW, View, short_side_size

GOLDENS = json.loads((Path(__file__).parents[2] / "goldens" / "training" / "transforms.json").read_text())
HEIGHT, WIDTH = GOLDENS["image_hw"]
BOXES = np.array(GOLDENS["input"]["boxes"])


def absolute(view: View, size: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """Boxes in pixels of the view resized to (H, W), and which of them are left."""
    moved, visible = view.move_boxes(BOXES / (WIDTH, HEIGHT, WIDTH, HEIGHT))
    kept = np.flatnonzero(visible > 0)
    return moved[kept] * (size[1], size[0], size[1], size[0]), kept.tolist()


def encoded_masks() -> list[bytes]:
    """The goldens' masks: each box, with its edges rounded outwards, as run lengths."""
    encoded = []
    for left, top, right, bottom in BOXES:
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
        mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = 1
        encoded.append(encode(coco_mask.encode(mask)))
    return encoded


def crop_view(crop: dict) -> View:
    top, left = crop["top"], crop["left"]
    return View(left / WIDTH, top / HEIGHT, (left + crop["width"]) / WIDTH, (top + crop["height"]) / HEIGHT)


@pytest.mark.parametrize("crop", GOLDENS["crop"])
def test_crop_golden(crop):
    """Areas differ from the golden on purpose: ours stay as annotated (decision 27 measures in pixels of the original)."""
    view, size = crop_view(crop), (crop["height"], crop["width"])
    boxes, kept = absolute(view, size)
    assert kept == crop["out"]["labels"]
    np.testing.assert_allclose(boxes, crop["out"]["boxes"], atol=1e-5)
    masks = [draw_view(encoded_masks()[index], HEIGHT, WIDTH, view, size) for index in kept]
    assert [int(mask.sum()) for mask in masks] == crop["out"]["masks"]["sums"]
    assert all(mask.shape == size for mask in masks)


def test_hflip_golden():
    view = View(hflip=True)
    boxes, kept = absolute(view, (HEIGHT, WIDTH))
    assert kept == GOLDENS["hflip"]["labels"]
    np.testing.assert_allclose(boxes, GOLDENS["hflip"]["boxes"], atol=1e-5)
    for encoded, total in zip(encoded_masks(), GOLDENS["hflip"]["masks"]["sums"]):
        mask = draw_view(encoded, HEIGHT, WIDTH, view, (HEIGHT, WIDTH))
        np.testing.assert_array_equal(mask, draw(encoded, HEIGHT, WIDTH)[:, ::-1])
        assert mask.sum() == total


@pytest.mark.parametrize("resize", GOLDENS["resize"])
def test_resize_golden(resize):
    boxes, _ = absolute(FULL_VIEW, resize["size"])
    np.testing.assert_allclose(boxes, resize["out"]["boxes"], atol=1e-4)


def test_masks_are_sampled_at_pixel_centres():
    """The golden's mask resize takes the pixel below each coordinate, which moves masks by up to half a pixel of the result
    against the picture and against polygons. Ours are where the picture is; this is a deviation from the golden on purpose."""
    mask = np.zeros((40, 40), dtype=np.uint8, order="F")
    mask[10:30, 20:40] = 1
    small = draw_view(encode(coco_mask.encode(mask)), 40, 40, FULL_VIEW, (10, 10))
    expected = mask.reshape(10, 4, 10, 4).mean(axis=(1, 3))  # the share of each small pixel
    assert (small[expected == 1]).all() and not small[expected == 0].any()
    mirrored = draw_view(encode(coco_mask.encode(mask)), 40, 40, View(hflip=True, vflip=True), (10, 10))
    np.testing.assert_array_equal(mirrored, small[::-1, ::-1])


@pytest.mark.parametrize("case", [case for case in GOLDENS["get_size"] if max(case["out"]) < (case["max_size"] or 9999) - 10])
def test_short_side_golden(case):
    """The cases without the limit of the long side, which nothing here uses: inputs are (H, W), not a short side."""
    assert short_side_size(case["h"], case["w"], case["size"]) == tuple(case["out"])


def test_polygons_and_run_lengths_are_drawn_alike():
    polygon = [30.0, 10.0, 90.0, 10.0, 90.0, 70.0, 30.0, 70.0]
    runs = coco_mask.frPyObjects([polygon], 100, 120)[0]
    for view in (FULL_VIEW, View(0.1, 0.2, 0.7, 0.9), View(0.3, 0.0, 1.0, 0.6, hflip=True), View(vflip=True, hflip=True),
                 View(0.1, 0.0, 0.8, 0.7, transpose=True), View(transpose=True, hflip=True), View(transpose=True, vflip=True)):
        drawn = draw_view(encode([polygon]), 100, 120, view, (50, 64))
        sampled = draw_view(encode(runs), 100, 120, view, (50, 64))
        assert (drawn != sampled).mean() < 0.03 and drawn.sum() > 200
    np.testing.assert_array_equal(draw(encode([polygon]), 100, 120), draw(encode(runs), 100, 120))


@pytest.mark.parametrize("view, turn", [
    (View(transpose=True), lambda array: array.T),
    (View(transpose=True, hflip=True), lambda array: np.rot90(array, -1)),
    (View(transpose=True, vflip=True), np.rot90),
    (View(hflip=True, vflip=True), lambda array: np.rot90(array, 2)),
    (View(transpose=True, hflip=True, vflip=True), lambda array: np.rot90(array.T, 2)),
])
def test_right_angles(view, turn):
    """Masks, boxes and points against the same turn of an array."""
    mask = np.zeros((30, 40), dtype=np.uint8, order="F")
    mask[4:10, 5:25] = 1
    turned = draw_view(encode(coco_mask.encode(mask)), 30, 40, view, view.size_before_turn((30, 40)))
    np.testing.assert_array_equal(turned, turn(mask))
    height, width = turned.shape
    rows, columns = np.nonzero(turned)
    expected = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
    boxes, visible = view.move_boxes(np.array([[5, 4, 25, 10]]) / (40, 30, 40, 30))
    np.testing.assert_allclose(boxes, [expected], atol=1e-9)
    np.testing.assert_allclose(visible, 1)
    corner = view.move_points(np.array([[5 / 40, 4 / 30]]))[0]
    assert np.isclose(corner[0], expected[0::2]).any() and np.isclose(corner[1], expected[1::2]).any()


def test_visible_share():
    boxes = np.array([[0.0, 0.0, 0.5, 1.0], [0.4, 0.4, 0.6, 0.6], [0.9, 0.9, 1.0, 1.0]])
    _, visible = View(0.25, 0.0, 0.75, 0.5).move_boxes(boxes)
    np.testing.assert_allclose(visible, [0.25, 0.5, 0.0])


def test_view_on_the_pixel_grid():
    assert View(0.1, 0.2, 0.6, 0.9).pixels(101, 203) == (20, 20, 91, 122)
    snapped = View(0.1, 0.2, 0.6, 0.9).snapped(101, 203)
    assert snapped.pixels(101, 203) == (20, 20, 91, 122)
    np.testing.assert_allclose(snapped.corner * (203, 101), (20, 20))
    top, left, bottom, right = View(0.999, 0.999, 1.0, 1.0).pixels(10, 10)
    assert (bottom - top, right - left) == (1, 1) and bottom <= 10 and right <= 10


@pytest.mark.parametrize("segmentation", [None, []], ids=["missing", "empty"])
def test_no_segmentation_covers_nothing(segmentation):
    assert not draw(encode(segmentation), 20, 30).any()
