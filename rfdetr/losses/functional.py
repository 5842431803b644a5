"""Classification losses and costs on single logits, as pure functions.

All four classification losses treat a (query, class) pair without an object alike, up to a factor: p^2 * softplus(z)
for the logit z and p = sigmoid(z). So the loss of a layer is that term over all logits, plus, at the few matched ones,
the difference between the loss there (the functions in `FOREGROUND`) and the term already counted.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_QUALITY = 0.01  # lowest target of IA-BCE: a matched query keeps some pull even without overlap


def background_loss(logits: Tensor) -> Tensor:
    """Loss of logits without an object, elementwise and without `background_factor`."""
    return logits.sigmoid().square() * F.softplus(logits)


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
    """Cost of matching an object of the logits' class: its focal loss less that of staying background."""
    return _focal_hit(logits, alpha) - (1 - alpha) * background_loss(logits)


def relative_quality(iou: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """Divide the IoU of each pair (P,) by the highest of its segment (P,), one segment a layer and image."""
    best = iou.new_zeros(num_segments).scatter_reduce(0, segments, iou, "amax")
    return iou / (best[segments] + 1e-8)


def _focal_hit(logits: Tensor, alpha: float) -> Tensor:
    return alpha * (1 - logits.sigmoid()).square() * F.softplus(-logits)


def _cross_entropy(logits: Tensor, quality: Tensor) -> Tensor:
    """Binary cross entropy towards soft targets, elementwise."""
    return quality * F.softplus(-logits) + (1 - quality) * F.softplus(logits)
