"""Scenes that are cut, joined, pasted and blended; and which pictures a mixed sample is made of."""

from collections import Counter

import numpy as np
import pytest
import torch

from rfdetr.data.mixing import Mixing, covering
from rfdetr.data.samplers import SampleKey
from rfdetr.data.scene import Scene

SIZE = (20, 40)


def scene(value: float, *boxes: tuple[int, int, int, int], masks: bool = True, size: tuple[int, int] = SIZE) -> Scene:
    """Make a picture of one grey with rectangles, x0, y0, x1, y1 in pixels, whose masks lack their lowest row."""
    drawn = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(drawn, boxes):
        mask[y0 : y1 - 1, x0:x1] = True
    fractions = np.array(boxes, dtype=float).reshape(-1, 4) / (size[1], size[0], size[1], size[0])
    labels = torch.full((len(boxes),), int(value * 10))
    return Scene(torch.full((3, *size), value), fractions, labels, torch.ones(len(boxes)), drawn if masks else None)


def pixels(found: Scene) -> list[list[float]]:
    return (found.boxes * np.tile(found.size[::-1], 2)).round(6).tolist()


def test_a_window_cuts_objects_and_drops_what_hardly_shows():
    cut = scene(0.5, (0, 0, 10, 10), (8, 0, 18, 10), (30, 10, 38, 20)).cut(0, 9, (15, 20))
    assert cut.size == (15, 20) and pixels(cut) == [[0, 0, 9, 10]], "of the first a tenth shows, of the third nothing"
    assert cut.masks.shape == (1, 15, 20) and cut.masks.sum() == 9 * 9 and len(cut.labels) == len(cut.areas) == 1


def test_a_scene_is_placed_in_a_larger_picture():
    placed = scene(0.5, (4, 4, 10, 10)).placed(5, 10, (40, 80))
    assert pixels(placed) == [[14, 9, 20, 15]] and placed.masks.sum() == 30 and placed.masks[0, 9:14, 14:20].all()
    assert placed.pixels.sum() == 3 * 20 * 40 * 0.5 and (placed.pixels[:, 5:25, 10:50] == 0.5).all()


def test_pasted_objects_hide_what_is_below_them():
    below = scene(0.1, (0, 0, 10, 11), (20, 0, 30, 11), (0, 12, 10, 19))
    above = scene(0.9, (5, 0, 15, 11), (20, 0, 30, 10))
    found = below.pasted_over(above)
    assert found.labels.tolist() == [1, 1, 9, 9], "the second is covered but for a tenth"
    assert pixels(found) == [[0, 0, 5, 10], [0, 12, 10, 19], [5, 0, 15, 11], [20, 0, 30, 10]]
    assert [mask.sum().item() for mask in found.masks] == [50, 60, 100, 90] and not (found.masks[0] & found.masks[2]).any()
    assert torch.equal(found.pixels[0] == 0.9, above.masks.any(0))


def test_without_masks_boxes_are_pasted_and_those_below_stay_whole_or_go():
    below = scene(0.1, (0, 0, 10, 10), (20, 0, 30, 10), masks=False)
    found = below.pasted_over(scene(0.9, (5, 0, 15, 10), (20, 0, 29, 10), masks=False))
    assert pixels(found) == [[0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 29, 10]] and found.masks is None
    assert (found.pixels[0] == 0.9).sum() == 190
    mixed = scene(0.9, (5, 0, 15, 10))
    mixed.masks[0] = False  # an object without a mask among others
    assert (below._replace(masks=torch.zeros(2, *SIZE, dtype=torch.bool)).pasted_over(mixed).pixels[0] == 0.9).sum() == 100


def test_an_object_thinner_than_a_pixel_at_the_edge_is_kept_and_pasted():
    thin = scene(0.9, (0, 0, 10, 10), masks=False)._replace(boxes=np.array([[0.999, 0.999, 1.0, 1.0]]))
    assert thin.shapes().nonzero().tolist() == [[0, 19, 39]]
    found = thin.pasted_over(scene(0.1, (0, 0, 5, 5), masks=False))
    assert found.labels.tolist() == [9, 1] and found.boxes[0].tolist() == [0.999, 0.999, 1.0, 1.0]


def test_a_covering_size_keeps_the_shape():
    assert covering((64, 96), (20, 60), 0.0) == (40, 60) and covering((64, 96), (20, 60), 1.0) == (64, 96)
    assert covering((16, 96), (32, 30), 0.7) == (32, 192), "a wide picture is enlarged where it has to be"
    assert covering((64, 96), (64, 96), 0.3) == (64, 96)


def test_what_is_mixed_is_a_function_of_the_position(shown):
    mixing = Mixing(mosaic=0.5, copy_paste=0.4, mixup=0.3, end_epoch=9)
    first = [shown(mixing, position) for position in range(400)]
    assert first == [shown(mixing, position) for position in range(400)]
    assert first != [shown(mixing, position, epoch=1) for position in range(400)]
    counts = Counter(len(keys) for keys, _ in first)
    assert sum(len(keys) for keys, _ in first) / 400 == pytest.approx(mixing.num_pictures, rel=0.1)
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    partners = [key for keys, _ in first for key in keys[1:]]
    assert {key.index for key in partners} == set(range(7)) and {key.part for key in partners} == {1, 2, 3, 4, 5}
    assert all(keys[0].part == 0 and keys[0].index == 3 and keys[0].size == SIZE for keys, _ in first)
    assert all(size == SIZE for _, size in first)


@pytest.fixture
def shown():
    """`shown(mixing, position)`: keys of the pictures that are asked for, and the size of the mixed sample."""
    def show(mixing: Mixing, position: int, epoch: int = 0) -> tuple[list[SampleKey], tuple[int, int]]:
        keys = []

        def one(key: SampleKey, cell) -> Scene:
            keys.append(key)
            return scene(0.5, (4, 4, 10, 10), size=SIZE if cell is None else covering(SIZE, *cell))

        mixed = mixing.mix(SampleKey(3, 7, epoch, position, SIZE), 7, one)
        return keys, mixed.size
    return show


def test_a_mosaic_has_no_gap_and_mixup_blends():
    def show(key: SampleKey, cell) -> Scene:
        size = SIZE if cell is None else covering(SIZE, *cell)
        return scene((1 + key.part) / 10, (0, 0, *size[::-1]), size=size)

    key = SampleKey(0, 7, 0, 5, SIZE)
    mosaic = Mixing(mosaic=1.0, end_epoch=1).mix(key, 3, show)
    assert sorted(mosaic.labels.tolist()) == [1, 2, 3, 4]
    assert set(mosaic.pixels.unique().tolist()) == set(torch.tensor([0.1, 0.2, 0.3, 0.4]).tolist())
    areas = (mosaic.boxes[:, 2:] - mosaic.boxes[:, :2]).prod(axis=1)
    assert areas.sum() == pytest.approx(1) and areas.min() > 0.08
    blended = Mixing(mixup=1.0, end_epoch=1).mix(key, 3, show)
    assert blended.labels.tolist() == [1, 6] and 0.1 < blended.pixels.unique().item() < 0.6
