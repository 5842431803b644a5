"""Operations whose backward takes fewer kernels and less memory traffic than autograd's own; their values are PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from rfdetr.models.exporting import cached, is_exporting

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x (..., I), weight (O, I), bias (O,) -> (..., O).

    On a CPU in float32 it is oneDNN's product, at 1.05 to 1.25 times the speed of MKL's, which F.linear takes there (measured
    with PyTorch 2.14 on an EPYC, one thread, 2,320 to 15,600 rows of 256 to 2,048 numbers).
    """
    if _has_faster_product(x, weight):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def feed_forward(x: Tensor, first: nn.Linear, second: nn.Linear, activation: str) -> Tensor:
    """``second(activation(first(x)))`` with "relu" or "gelu", keeping one hidden tensor for backward, where autograd keeps
    two and makes a third."""
    return _FeedForward.apply(*_in_autocast(x, first.weight, first.bias, second.weight, second.bias), activation == "gelu")


def _has_faster_product(x: Tensor, weight: Tensor) -> bool:
    return (x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and _HAS_ONEDNN
            and not torch.is_autocast_enabled("cpu") and not is_exporting())


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` without a gradient, by the faster library."""
    if _has_faster_product(x, weight):
        return _onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias)


@torch.library.custom_op("rfdetr::onednn_linear", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """An operator of its own, since torch.compile knows oneDNN's for constant weights only."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_onednn_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _in_autocast(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast casts a product's arguments: an operation of one's own is not cast on its own."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, *weights
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), *(weight.to(dtype) for weight in weights)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (_product(grad, weight.mT) if wants_x else None,
                _rows(grad).mT @ _rows(x) if wants_weight else None,
                _rows(grad).sum(0) if wants_bias else None)


class _FeedForward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor,
                is_gelu: bool) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            hidden = _product(x, weight_1, bias_1)
            active = F.gelu(hidden) if is_gelu else hidden.relu_()
            ctx.save_for_backward(x, weight_1, weight_2, hidden)
            ctx.is_gelu = is_gelu
            return _product(active, weight_2, bias_2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_1, weight_2, hidden = ctx.saved_tensors
        wants_x, wants_1, wants_bias_1, wants_2, wants_bias_2 = ctx.needs_input_grad[:5]
        active = F.gelu(hidden) if ctx.is_gelu and wants_2 else hidden
        grad_2 = _rows(grad).mT @ _rows(active) if wants_2 else None
        del active
        inner = _product(grad, weight_2.mT)
        if ctx.is_gelu:
            torch.ops.aten.gelu_backward.grad_input(inner, hidden, grad_input=inner)
        else:
            torch.ops.aten.threshold_backward.grad_input(inner, hidden, 0, grad_input=inner)
        return (_product(inner, weight_1.mT) if wants_x else None,
                _rows(inner).mT @ _rows(x) if wants_1 else None, _rows(inner).sum(0) if wants_bias_1 else None,
                grad_2, _rows(grad).sum(0) if wants_bias_2 else None, None)


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x[g] @ weight[g].T + bias[g]`` for all groups: x (G, R, I), weight (G, O, I), bias (G, O) -> (G, R, O).

    The weights' gradient is made in their own layout; autograd makes its transpose, which is then copied group by group.
    """
    x, weight, bias = _in_autocast(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return _GroupedLinear.apply(x, weight, bias)


class _GroupedLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.mT @ x, grad.sum(1)


def scaled_add(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """``x + scale * y``, where scale (C,) belongs to the channels, the last axis of x and y, (..., C)."""
    return _ScaledAdd.apply(x, y, scale) if torch.is_grad_enabled() else torch.addcmul(x, y, scale)


class _ScaledAdd(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(y, scale)
        return torch.addcmul(x, y, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """A batch norm of fixed mean 0 and variance 1 has the same gradients of y and scale, and one kernel for both."""
        y, scale = ctx.saved_tensors
        rows, channels = grad.reshape(-1, grad.shape[-1]), y.reshape(-1, y.shape[-1]).to(grad.dtype)
        grad_y, grad_scale, _ = torch.ops.aten.native_batch_norm_backward(
            rows, channels, scale, *_mean_and_variance(len(scale), scale.dtype, scale.device), None, None, False, 0.0,
            [True, True, False])
        return grad, grad_y.view(y.shape).to(y.dtype), grad_scale


@cached
def _mean_and_variance(channels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.zeros(channels, dtype=dtype, device=device), torch.ones(channels, dtype=dtype, device=device)
