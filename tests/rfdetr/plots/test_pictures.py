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
    assert torch.equal(drawn[:, :, 125:], GREY[:, :, 125:])


def test_masks_are_tinted_inside_their_outlines():
    masks = torch.zeros(1, 1, 120, 160, dtype=torch.bool)
    masks[..., 60:80, 50:90] = True
    drawn = draw_detections(GREY, torch.tensor([[40.0, 50, 100, 90]]), torch.tensor([0]), class_names=NAMES, masks=masks)
    inside = drawn[:, 61:79, 51:89]
    assert (inside == inside[:, :1, :1]).all() and not torch.equal(inside[:, 0, 0], GREY[:, 0, 0])
    assert drawn[:, 60, 70].tolist() == drawn[:, 70, 50].tolist() == list(class_color(0)), "the outline"
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
    assert sheet.size == (2 * 38 + 8, 2 * 28 + 8)
    assert [sheet.getpixel(place)[0] for place in ((23, 18), (61, 18), (23, 46), (61, 46))] == [10, 20, 30, 250]
    with pytest.raises(ValueError, match="no picture"):
        picture_grid([], columns=2)


def _plates(drawn, label):
    """The rows and columns of a picture that hold a class's colour."""
    return (drawn == torch.tensor(class_color(label), dtype=torch.uint8)[:, None, None]).all(dim=0).nonzero()


@pytest.mark.parametrize("box", [[0.0, 0, 10, 10], [150.0, 0, 159, 119], [150.0, 110, 159, 119], [0.0, 0, 159, 119]])
def test_a_name_stays_inside_and_a_long_one_is_cut(box):
    for name in ("cat", "a name that is much longer than the picture is wide, and ends in $5"):
        drawn = draw_detections(GREY, torch.tensor([box]), [0], class_names=[name])
        x0, y0, x1, y1 = (int(side) for side in box)
        plate = drawn.clone()
        plate[:, max(y0 - 2, 0) : y1 + 3, max(x0 - 2, 0) : x1 + 3] = GREY[:, max(y0 - 2, 0) : y1 + 3, max(x0 - 2, 0) : x1 + 3]
        assert len(_plates(drawn, 0)) > 100, "there is a plate, and all of it is in the picture"
        assert len(plate.unique()) > 2 or box[2] - box[0] > 100


def test_names_give_way_where_it_is_crowded_the_better_scores_keep_theirs():
    boxes = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)).mul(100)
    boxes[:, 2:] = boxes[:, :2] + 8
    labels, scores = [0] * 199 + [1], torch.linspace(0.1, 0.9, 200)
    drawn = draw_detections(GREY, boxes, labels, class_names=["a", "best"], scores=scores)
    alone = draw_detections(GREY, boxes[-1:], labels[-1:], class_names=["a", "best"], scores=scores[-1:])
    assert len(_plates(drawn, 1)) == len(_plates(alone, 1)), "its plate is whole"
    unnamed = draw_detections(GREY, boxes, labels, class_names=["", ""])
    assert (drawn != unnamed).any(dim=0).float().mean() < 0.3, "names cover little of a crowded picture"


def test_names_grow_with_the_picture():
    sizes = []
    for height, width in ((120, 160), (1200, 1600)):
        box = torch.tensor([[0.3 * width, 0.3 * height, 0.4 * width, 0.4 * height]])
        drawn = draw_detections(torch.full((3, height, width), 128, dtype=torch.uint8), box, [0], class_names=["cat"])
        sizes.append(len(_plates(drawn, 0)))
    assert sizes[1] > 10 * sizes[0]


def test_training_samples_with_and_without_objects():
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, 20:40, 20:40] = True
    sheet = training_picture([_sample(masks=masks), _sample(boxes=())], class_names=NAMES, headings=["a", "b"], title="samples")
    assert sheet.size == (2 * 328 + 8, 26 + 19 + 328 + 8)


def test_a_letterboxed_sample_is_padded_where_the_model_has_its_padding():
    image, target = _sample(boxes=((0.5, 0.5, 1.0, 1.0),))
    target["canvas"] = torch.tensor([64, 128])  # the picture is its left half
    sheet = training_picture([(image, target)], class_names=["", ""], tile=256)
    assert sheet.size == (256 + 16, 128 + 16)
    assert sheet.getpixel((8 + 64, 8 + 64))[0] == pytest.approx(128, abs=2)
    assert sheet.getpixel((8 + 190, 8 + 64)) == (124, 116, 104), "ImageNet's mean, a normalised zero"
    assert sheet.getpixel((8, 8 + 64)) == sheet.getpixel((8 + 128, 8 + 64)) == class_color(0), "the box is around the picture"
