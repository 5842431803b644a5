"""Box conversions and overlaps on boxes whose answers are known."""

import pytest
import torch

from rfdetr.box_ops import box_iou, cxcywh_to_xyxy, generalized_box_iou

UNIT = torch.tensor([0.0, 0.0, 1.0, 1.0])


def test_centre_and_size_become_corners():
    corners = torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.3, 0.3, 0.3, 0.3]])
    torch.testing.assert_close(cxcywh_to_xyxy(torch.tensor([[0.3, 0.55, 0.4, 0.7], [0.3, 0.3, 0.0, 0.0]])), corners)


def test_negative_sizes_become_points():
    boxes = cxcywh_to_xyxy(torch.tensor([0.5, 0.5, -0.2, 0.4]))
    torch.testing.assert_close(boxes, torch.tensor([0.5, 0.3, 0.5, 0.7]))


@pytest.mark.parametrize(
    ("box", "iou", "giou"),
    [
        ([0.0, 0.0, 1.0, 1.0], 1.0, 1.0),
        ([0.5, 0.0, 1.5, 1.0], 1 / 3, 1 / 3),  # the hull has no empty corner
        ([2.0, 0.0, 3.0, 1.0], 0.0, -1 / 3),
        ([1.0, 1.0, 2.0, 2.0], 0.0, -0.5),
        ([0.5, 0.5, 0.5, 0.5], 0.0, 0.0),  # a point inside
    ],
)
def test_overlap_with_the_unit_square(box, iou, giou):
    box = torch.tensor(box)
    assert box_iou(box, UNIT).item() == pytest.approx(iou)
    assert generalized_box_iou(box, UNIT).item() == pytest.approx(giou)


def test_two_points_overlap_by_nothing_and_have_finite_gradients():
    boxes = torch.full((1, 4), 0.5, requires_grad=True)
    value = generalized_box_iou(boxes, boxes.detach())
    value.sum().backward()
    assert value.item() == 0 and boxes.grad.isfinite().all()


def test_broadcasting_gives_the_table_of_all_pairs():
    torch.manual_seed(0)
    a, b = (cxcywh_to_xyxy(torch.rand(count, 4)) for count in (5, 3))
    table = generalized_box_iou(a[:, None], b[None])
    assert table.shape == (5, 3)
    torch.testing.assert_close(table[:3].diagonal(), generalized_box_iou(a[:3], b))
    assert table.min() >= -1 and table.max() <= 1
