"""The check as one picture: the classes have the colours that they have in a run."""

import numpy as np
from PIL import Image

from rfdetr.datacheck.sheet import draw_sheet
from rfdetr.plots.colors import class_color


def test_a_category_that_only_groups_others_does_not_shift_the_colours(dataset, tmp_path):
    draw_sheet(dataset.check(), tmp_path / "check.png")
    with Image.open(tmp_path / "check.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    counts, legend = ([(np.abs(part - np.array(class_color(label))).max(axis=2) < 4).sum() for label in range(3)]
                      for part in (pixels, pixels[:420, : pixels.shape[1] // 3]))
    assert min(legend[:2]) > 50 and legend[2] == 0, "the names below the bars stand on the colours of the boxes"
    assert min(counts[:2]) > 1000, "cat and dog are the labels 0 and 1 of a run"
    assert counts[2] < min(counts[:2]) / 5
