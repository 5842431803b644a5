"""Colours of classes: one for each, the same whatever comes after it, told apart by everybody."""

import numpy as np
import pytest

from rfdetr.plots.colors import _distances, _lab, class_color, text_color


def _smallest_distance(colors):
    seen = _lab(np.array(colors))
    return min(_distances(seen[:, :index], seen[:, index : index + 1]).min() for index in range(1, len(colors)))


def test_colours_come_again_after_256_classes():
    colors = [class_color(label) for label in range(300)]
    assert len(set(colors[:256])) == 256 and colors[256:] == colors[:44]


@pytest.mark.parametrize("num_classes, distance", [(7, 19), (20, 19), (80, 9), (256, 5)])
def test_colours_are_far_apart_in_each_vision(num_classes, distance):
    assert _smallest_distance([class_color(label) for label in range(num_classes)]) > distance  # 2.3 is just noticeable in L*a*b*


def test_text_is_read_on_every_colour():
    for color in map(class_color, range(256)):
        lightness = _lab(np.array([color, text_color(color)]))[0, :, 0]
        assert abs(lightness[0] - lightness[1]) > 40
