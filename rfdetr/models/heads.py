"""Small heads on top of tokens: MLPs, class and box heads, and how a box is decoded."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rfdetr.models.fused import Linear, grouped_linear

_PRIOR = 0.01  # chance of an object that a fresh class head predicts


def decode_boxes(delta: Tensor, reference: Tensor) -> Tensor:
    """delta (..., 4), reference (..., 4) cxcywh -> boxes (..., 4) cxcywh, in the reference's (full) precision.

    The centre moves by multiples of the reference's size and the size is scaled by exp, so nothing bounds a box.
    """
    return _Decode.apply(delta.to(reference.dtype), reference)


class _Decode(Function):
    """The gradient is written out: autograd would take three times as many kernels."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, reference: Tensor) -> Tensor:
        shift, growth = delta.split(2, dim=-1)
        centre, size = reference.split(2, dim=-1)
        boxes = torch.cat((torch.addcmul(centre, shift, size), growth.exp() * size), dim=-1)
        ctx.save_for_backward(delta, reference, boxes)
        return boxes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        delta, reference, boxes = ctx.saved_tensors
        by_delta = by_reference = None
        if ctx.needs_input_grad[0]:
            sizes = torch.cat((reference[..., 2:].expand_as(boxes[..., 2:]), boxes[..., 2:]), dim=-1)
            by_delta = (grad * sizes).sum_to_size(delta.shape)
        if ctx.needs_input_grad[1]:
            (by_centre, by_size), (shift, growth) = (x.split(2, dim=-1) for x in (grad, delta))
            by_reference = torch.cat((by_centre, torch.addcmul(by_size * growth.exp(), by_centre, shift)), dim=-1)
            by_reference = by_reference.sum_to_size(reference.shape)
        return by_delta, by_reference


def full_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a head's last layer in the precision of its weights, also under autocast.

    It costs next to nothing, and neither scores nor box deltas are rounded to the 8 bits of bfloat16.
    """
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(layer.weight.dtype))


class MLP(nn.Module):
    """Linear layers with ReLU in between."""

    def __init__(self, in_features: int, hidden: int, out_features: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_features, *[hidden] * (num_layers - 1), out_features]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in zip(widths[:-1], widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class BoxHead(MLP):
    """Three-layer MLP that gives box deltas in full precision; fresh, it gives zeros (the reference itself)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 4, num_layers=3)
        self.reset_output()

    def reset_output(self) -> None:
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) -> deltas (..., 4)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return full_precision(self.layers[-1], x)


def class_head(width: int, num_logits: int) -> nn.Linear:
    """Linear class head whose bias makes every class as unlikely as focal losses want it at the start."""
    head = nn.Linear(width, num_logits)
    nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
    return head


def stack_layers(layers: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """Return the weights and the biases of G layers, each stacked on a first axis."""
    return torch.stack([layer.weight for layer in layers]), torch.stack([layer.bias for layer in layers])


def grouped_full_precision(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`grouped_linear` in the precision of the weights, also under autocast (see `full_precision`)."""
    with torch.autocast(x.device.type, enabled=False):
        return grouped_linear(x.to(weight.dtype), weight, bias)


def grouped_boxes(layers: Sequence[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Box deltas of head g for x[g]: the heads' stacked layers, x (G, R, D) -> (G, R, 4)."""
    *hidden, last = layers
    for weight, bias in hidden:
        x = F.relu(grouped_linear(x, weight, bias))
    return grouped_full_precision(x, *last)
