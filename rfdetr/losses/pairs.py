"""Overlaps of matched boxes, with the gradient written out: autograd would take three times as many small kernels."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rfdetr.box_ops import EPS


def pair_losses(predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes cxcywh (P, 4) twice -> L1 distance, 1 - GIoU, and IoU, which has no gradient: (P,) each, a value a pair.

    The gradient with respect to ``predicted`` is autograd's except at ties and for boxes of less than EPS, where any of several
    is right. Generalized IoU: Rezatofighi et al., CVPR 2019.
    """
    return _PairLosses.apply(predicted, wanted)


class _PairLosses(Function):
    @staticmethod
    def forward(ctx: Any, predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        difference = predicted - wanted
        centers, sizes = torch.stack((predicted, wanted)).split(2, dim=-1)
        half = sizes.clamp(min=0) / 2
        near, far = centers - half, centers + half  # (2, P, 2)
        (first, inner_near), (inner_far, last) = torch.aminmax(near, dim=0), torch.aminmax(far, dim=0)
        overlap, hull_sides = (inner_far - inner_near).clamp_(min=0), last - first
        sides = torch.stack((far[1] - near[1], far[0] - near[0], overlap, hull_sides))  # (4, P, 2)
        wanted_area, area, intersection, hull = (sides[..., 0] * sides[..., 1]).unbind()
        union = area + wanted_area - intersection
        union_part, hull_part = torch.stack((union, hull)).clamp_(min=EPS).reciprocal_().unbind()
        iou = intersection * union_part
        giou_loss = 1 - iou + (hull - union) * hull_part
        if ctx.needs_input_grad[0]:
            # GIoU = I / U - 1 + U / H with U = A + B - I, for the predicted area A, the intersection I and the hull H
            falling = iou * union_part
            by_area = hull_part - falling
            by_intersection = (union_part - by_area) * (intersection > 0)
            by_hull = -union * hull_part.square()
            slopes = torch.stack((by_area, by_intersection, by_hull))[..., None]
            by_size, by_overlap, by_sides = (slopes * sides[1:].flip(-1)).unbind()
            by_far = torch.where(far[0] < far[1], by_overlap, by_sides)
            by_near = torch.where(near[0] > near[1], by_overlap, by_sides)  # with the sign turned
            by_size = torch.add(by_size, by_far + by_near, alpha=0.5)
            by_size = torch.ops.aten.threshold_backward(by_size, sizes[0], 0)
            ctx.save_for_backward(difference.sign(), torch.cat((by_far - by_near, by_size), dim=-1))
        ctx.mark_non_differentiable(iou)
        return difference.abs_().sum(-1), giou_loss, iou

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_l1: Tensor, by_giou_loss: Tensor, _: Tensor) -> tuple[Tensor, None]:
        sign, slope = ctx.saved_tensors
        return torch.addcmul(by_l1[:, None] * sign, by_giou_loss[:, None], slope, value=-1), None
