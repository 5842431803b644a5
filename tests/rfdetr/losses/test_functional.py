"""Losses with a gradient of their own: values and gradients are autograd's."""

import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou_loss

from rfdetr.box_ops import cxcywh_to_xyxy
from rfdetr.losses import functional
from rfdetr.losses.pairs import pair_losses


def plain_pair_losses(predicted, wanted):
    a, b = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted)
    ious = torch.cat([box_iou(*pair) for pair in zip(a[:, None], b[:, None])]).flatten()
    return (predicted - wanted).abs().sum(-1), generalized_box_iou_loss(a, b, eps=0.0), ious.detach()


def test_pair_losses():
    generator = torch.Generator().manual_seed(0)
    predicted, wanted = torch.rand(2, 3000, 4, generator=generator, dtype=torch.float64) * torch.tensor([1, 1, 0.4, 0.4])
    weights, results = torch.randn(2, 3000, generator=generator, dtype=torch.float64), []
    for function in (pair_losses, plain_pair_losses):
        leaf = predicted.clone().requires_grad_()
        l1, giou_loss, iou = function(leaf, wanted)
        (weights[0] * l1 + weights[1] * giou_loss).sum().backward()
        results.append((l1.detach(), giou_loss.detach(), iou, leaf.grad))
    torch.testing.assert_close(*results)
    assert not iou.requires_grad


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.0, 0.2], [0.5, 0.5, -0.1, 0.2], [0.3, 0.3, 1e-5, 1e-5], [2.0, 2.0, 0.1, 0.1]])
def test_pair_losses_of_odd_boxes_are_finite(box):
    predicted = torch.tensor([box], requires_grad=True)
    l1, giou_loss, iou = pair_losses(predicted, torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    (l1 + giou_loss).sum().backward()
    assert predicted.grad.isfinite().all() and 0 <= iou < 1 and 0 < giou_loss <= 2


@pytest.mark.parametrize("cached", [{}, {"cpu": 16}, {"cpu": 2**17}])
@pytest.mark.parametrize("counts", [[4, 4], [5, 3]])
def test_background_sums(monkeypatch, counts, cached):
    monkeypatch.setattr(functional, "CACHED", cached)
    logits = torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True)
    plain = torch.stack([x.sum() for x in functional.background_loss(logits).split(counts, dim=1)])
    torch.testing.assert_close(functional.background_sums(logits, counts), plain)
    assert torch.autograd.gradcheck(lambda z: functional.background_sums(z, counts), logits)
