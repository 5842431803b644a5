"""Operations whose backward takes fewer kernels and less memory traffic than autograd's own; their values are PyTorch's."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x[g] @ weight[g].T + bias[g]`` for all groups: x (G, R, I), weight (G, O, I), bias (G, O) -> (G, R, O).

    The weights' gradient is made in their own layout; autograd makes its transpose, which is then copied group by group.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:  # an operation of one's own is not cast on its own
        x, weight, bias = (values.to(torch.get_autocast_dtype(device)) for values in (x, weight, bias))
    with torch.autocast(device, enabled=False):
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


@functools.lru_cache
def _mean_and_variance(channels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.zeros(channels, dtype=dtype, device=device), torch.ones(channels, dtype=dtype, device=device)
