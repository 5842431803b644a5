"""Pictures of detections: what is drawn where, and that odd boxes do no harm."""

import pytest
import torch

from rfdetr.data.images import preprocess
from rfdetr.plots.colors import class_color
from rfdetr.plots.pictures import (
    display_size,
    displayable,
    draw_detections,
    picture_grid,
    prediction_picture,
    training_picture,
)

NAMES = ["circle", "square"]
GREY = torch.full((3, 120, 160), 128, dtype=torch.uint8)


def _sample(boxes=((0.5, 0.5, 0.4, 0.4),), masks=None):
    target = {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.arange(len(boxes)),
        "orig_size": torch.tensor([240, 320]),
        "size": torch.tensor([64, 64]),
    }
    if masks is not None:
        target["masks"] = masks
    return preprocess(GREY, (64, 64)), target


def test_box_and_name_are_drawn_and_the_rest_stays():
    before = GREY.clone()
    drawn = draw_detections(GREY, torch.tensor([[40.0, 50, 100, 90]]), [1], class_names=NAMES, scores=torch.tensor([0.75]))
    assert torch.equal(GREY, before), "the picture given is not drawn on"
    color = torch.tensor(class_color(1), dtype=torch.uint8)
    for x, y in ((40, 70), (100, 70), (70, 90), (41, 48)):
        assert torch.equal(drawn[:, y, x], color), "on the box, and on the plate above it"
    assert torch.equal(drawn[:, 55:85, 45:95], GREY[:, 55:85, 45:95])
    assert torch.equal(drawn[:, :, 120:], GREY[:, :, 120:])


def test_masks_are_tinted():
    masks = torch.zeros(1, 1, 120, 160, dtype=torch.bool)
    masks[..., 60:80, 50:90] = True
    drawn = draw_detections(GREY, torch.tensor([[40.0, 50, 100, 90]]), torch.tensor([0]), class_names=NAMES, masks=masks)
    inside = drawn[:, 60:80, 50:90]
    assert (inside == inside[:, :1, :1]).all() and not torch.equal(inside[:, 0, 0], GREY[:, 0, 0])
    assert torch.equal(drawn[:, 83:88, 45:95], GREY[:, 83:88, 45:95])


def test_better_score_lies_on_top():
    boxes = torch.tensor([[40.0, 50, 100, 90], [40.0, 50, 100, 90]])
    for scores, top in (([0.9, 0.2], 0), ([0.2, 0.9], 1)):
        drawn = draw_detections(GREY, boxes, [0, 1], class_names=NAMES, scores=torch.tensor(scores))
        assert drawn[:, 70, 40].tolist() == list(class_color(top))


@pytest.mark.parametrize("box", [
    [-50.0, -50, 500, 500], [150.0, 110, 400, 300], [30.0, 30, 30, 30], [90.0, 90, 20, 20], [float("nan"), 0, 10, float("inf")],
])
def test_odd_boxes_are_drawn_somehow(box):
    drawn = draw_detections(GREY, torch.tensor([box]), [7], class_names=NAMES, scores=torch.tensor([0.5]))
    assert drawn.shape == GREY.shape and not torch.equal(drawn, GREY)


def test_no_detection_leaves_the_picture():
    no_masks = torch.zeros(0, 1, 120, 160, dtype=torch.bool)
    drawn = draw_detections(GREY, torch.zeros(0, 4), [], class_names=NAMES, scores=torch.zeros(0), masks=no_masks)
    assert torch.equal(drawn, GREY)


def test_displayable_undoes_normalisation():
    ramp = torch.arange(64 * 64, dtype=torch.float).reshape(1, 64, 64).div(16).byte().expand(3, -1, -1)
    back = displayable(preprocess(ramp, (64, 64)), (64, 64))
    assert back.dtype == torch.uint8 and (back.int() - ramp.int()).abs().max() <= 1


def test_display_size_keeps_proportions():
    assert display_size(torch.tensor([480, 640]), 320) == (240, 320)
    assert display_size((5000, 1), 320) == (320, 1)


def test_grid_has_a_cell_for_each_picture():
    pictures = [torch.full((3, 20, width), 10 * (index + 1), dtype=torch.uint8) for index, width in enumerate((30, 20, 30))]
    sheet = picture_grid(pictures, columns=2)
    assert sheet.size == (2 * 36 + 6, 2 * 26 + 6)
    assert [sheet.getpixel(place)[0] for place in ((21, 16), (57, 16), (21, 42), (57, 42))] == [10, 20, 30, 250]
    with pytest.raises(ValueError, match="no picture"):
        picture_grid([], columns=2)


def test_prediction_is_next_to_the_truth():
    result = {"scores": torch.tensor([0.9, 0.1]), "labels": torch.tensor([1, 0]),
              "boxes": torch.tensor([[96.0, 72, 224, 168], [0.0, 0, 40, 40]])}
    sheet = prediction_picture([_sample()], [result], class_names=NAMES, score_threshold=0.5)
    assert sheet.width == 2 * 326 + 6
    middle_of_left_edge = (6 + 96, 24 + 6 + 120)
    assert sheet.getpixel(middle_of_left_edge) == class_color(0), "the truth, a circle"
    assert sheet.getpixel((middle_of_left_edge[0] + 326, middle_of_left_edge[1])) == class_color(1), "found a square"
    assert sheet.getpixel((6 + 326 + 20, 24 + 6 + 40))[0] == pytest.approx(128, abs=2), "the score of the other is too low"


def test_training_samples_with_and_without_objects():
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, 20:40, 20:40] = True
    sheet = training_picture([_sample(masks=masks), _sample(boxes=())], class_names=NAMES)
    assert sheet.size == (2 * 326 + 6, 326 + 6)
