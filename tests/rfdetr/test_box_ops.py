"""Box conversions on boxes whose answers are known."""

import torch

from rfdetr.box_ops import cxcywh_to_xyxy


def test_centre_and_size_become_corners():
    corners = torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.3, 0.3, 0.3, 0.3]])
    torch.testing.assert_close(cxcywh_to_xyxy(torch.tensor([[0.3, 0.55, 0.4, 0.7], [0.3, 0.3, 0.0, 0.0]])), corners)


def test_negative_sizes_become_points():
    boxes = cxcywh_to_xyxy(torch.tensor([0.5, 0.5, -0.2, 0.4]))
    torch.testing.assert_close(boxes, torch.tensor([0.5, 0.3, 0.5, 0.7]))
