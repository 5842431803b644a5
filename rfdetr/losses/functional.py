"""Classification losses and costs on single logits, as pure functions.

All four classification losses treat a (query, class) pair without an object alike, up to a factor: p^2 * softplus(z)
for the logit z and p = sigmoid(z). So the loss of a layer is that term over all logits, plus, at the few matched ones,
the difference between the loss there (the functions in `FOREGROUND`) and the term already counted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rfdetr.losses.stacked import layer_sums

CACHED = {"cpu": 2**17}  # numbers of a part that is computed at a time
MIN_QUALITY = 0.01  # lowest target of IA-BCE: a matched query keeps some pull even without overlap


def background_loss(logits: Tensor) -> Tensor:
    """Loss of logits without an object, elementwise and without `background_factor`."""
    return logits.sigmoid().square() * F.softplus(logits)


def background_sums(logits: Tensor, query_counts: Sequence[int]) -> Tensor:
    """Sum `background_loss` over logits (B, N, C) -> (L,), for layers of ``query_counts`` queries side by side on axis 1."""
    return layer_sums(_BackgroundSums.apply(logits), query_counts)


class _BackgroundSums(Function):
    """(B, N, C) -> (N,) sums; keeps one tensor for backward, the gradient, in place of three."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        slopes = torch.empty_like(logits)
        sums = logits.new_empty(logits.shape[:2])
        for part, slope, total in zip(*(pieces(x.flatten(0, 1), logits.shape[-1]) for x in (logits, slopes, sums))):
            p, softplus = part.sigmoid(), F.softplus(part)
            square = p.square()
            torch.sum(square * softplus, dim=-1, out=total)
            torch.add(p, softplus.mul_(1 - p), alpha=2, out=slope).mul_(square)  # p^2 (2 (1 - p) softplus(z) + p)
        ctx.save_for_backward(slopes)
        return sums.sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slopes,) = ctx.saved_tensors
        return slopes * grad[:, None]


def pieces(rows: Tensor, row_length: int) -> tuple[Tensor, ...]:
    """Cut (R, ...) into parts of which a CPU's cache can hold the intermediate results, with so many numbers a row."""
    if torch.compiler.is_compiling() or rows.device.type not in CACHED:  # compiled code stores nothing in between
        return (rows,)
    return rows.split(max(1, CACHED[rows.device.type] // row_length)) if len(rows) else (rows,)


def background_factor(class_loss: str, alpha: float) -> float:
    """Weight of `background_loss` in a classification loss."""
    return 1.0 if class_loss == "ia_bce" else 1.0 - alpha


def ia_bce(logits: Tensor, iou: Tensor, alpha: float) -> Tensor:
    """Cross entropy towards a blend of confidence and IoU of the matched pairs (P,)."""
    quality = logits.detach().sigmoid() ** alpha * iou ** (1 - alpha)
    return _cross_entropy(logits, quality.clamp(min=MIN_QUALITY))


def position_supervised(logits: Tensor, quality: Tensor, alpha: float) -> Tensor:
    """Cross entropy towards the IoU relative to the image's best (P,), weighted by how far off the logits are."""
    error = (quality - logits.sigmoid()).square()
    foreground = alpha * error * _cross_entropy(logits, quality)
    return torch.where(quality > 0, foreground, (1 - alpha) * background_loss(logits))


def varifocal(logits: Tensor, iou: Tensor, alpha: float) -> Tensor:
    """Cross entropy towards the IoU (P,), weighted by it."""
    return torch.where(iou > 0, iou * _cross_entropy(logits, iou), (1 - alpha) * background_loss(logits))


def focal(logits: Tensor, iou: Tensor, alpha: float) -> Tensor:
    """Focal loss of the matched pairs (P,); their IoU does not count."""
    return _focal_hit(logits, alpha)


FOREGROUND: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "ia_bce": ia_bce,
    "position_supervised": position_supervised,
    "varifocal": varifocal,
    "focal": focal,
}


def focal_cost(logits: Tensor, alpha: float) -> Tensor:
    """Cost (R, N) of matching objects of the logits' class: their focal loss less that of background. Without a gradient."""
    costs = []
    for part in pieces(logits, logits.shape[-1]):
        p, softplus = part.sigmoid(), F.softplus(part)
        hit = (softplus - part).mul_((1 - p).square_()).mul_(alpha)
        costs.append(hit.sub_(p.square_().mul_(softplus), alpha=1 - alpha))
    return torch.cat(costs)


def relative_quality(iou: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """Divide the IoU of each pair (P,) by the highest of its segment (P,), one segment a layer and image."""
    best = iou.new_zeros(num_segments).scatter_reduce(0, segments, iou, "amax")
    return iou / (best[segments] + 1e-8)


def _focal_hit(logits: Tensor, alpha: float) -> Tensor:
    return alpha * (1 - logits.sigmoid()).square() * F.softplus(-logits)


def _cross_entropy(logits: Tensor, quality: Tensor) -> Tensor:
    """Binary cross entropy towards soft targets, elementwise."""
    return torch.addcmul(F.softplus(-logits), 1 - quality, logits)
