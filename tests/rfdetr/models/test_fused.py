"""Operations with a backward of their own: values and gradients are autograd's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rfdetr.models.fused import feed_forward, grouped_linear, linear, scaled_add

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


def gradients(function, *tensors):
    """Value and gradients of a function, for fixed gradients of its value."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = function(*tensors)
    value.backward(torch.linspace(-1, 1, value.numel(), dtype=value.dtype).reshape(value.shape))
    return value.detach(), [tensor.grad for tensor in tensors]


def random(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward(activation, dtype, tolerance):
    first, second = nn.Linear(6, 20).to(dtype), nn.Linear(20, 6).to(dtype)

    def ours(x):
        return feed_forward(x, first, second, activation)

    def plain(x):
        return second(ACTIVATIONS[activation](first(x)))

    (x,) = random((3, 5, 6), dtype=dtype)
    results = []
    for function in (ours, plain):
        value, grads = gradients(function, x)
        results.append([value, *grads, *(p.grad.clone() for p in [*first.parameters(), *second.parameters()])])
        first.zero_grad(), second.zero_grad()
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("frozen", ["first", "second"])
def test_feed_forward_with_a_frozen_layer(frozen):
    layers = {"first": nn.Linear(4, 8), "second": nn.Linear(8, 4)}
    layers[frozen].requires_grad_(False)
    feed_forward(torch.randn(2, 4), layers["first"], layers["second"], "gelu").sum().backward()
    for name, layer in layers.items():
        assert [p.grad is None for p in layer.parameters()] == [name == frozen] * 2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias, dtype, tolerance):
    x, weight, offset = random((3, 5, 6), (7, 6), (7,), dtype=dtype)
    tensors = (x, weight, offset) if bias else (x, weight)
    torch.testing.assert_close(gradients(linear, *tensors), gradients(F.linear, *tensors), rtol=tolerance, atol=tolerance)


def test_grouped_linear():
    x, weight, bias = random((3, 5, 6), (3, 7, 6), (3, 7))
    plain = gradients(lambda x, w, b: torch.stack([F.linear(*of_group) for of_group in zip(x, w, b)]), x, weight, bias)
    torch.testing.assert_close(gradients(grouped_linear, x, weight, bias), plain)


def test_scaled_add():
    x, y, scale = random((3, 5, 6), (3, 5, 6), (6,))
    torch.testing.assert_close(gradients(scaled_add, x, y, scale), gradients(lambda x, y, s: x + s * y, x, y, scale))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_under_autocast_products_are_in_16_bits(activation):
    first, second = nn.Linear(6, 20), nn.Linear(20, 6)
    (x,) = random((4, 6), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = feed_forward(x, first, second, activation)
        plain = second(ACTIVATIONS[activation](first(x)))
    assert value.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(value, plain)
    value.float().sum().backward()
    assert first.weight.grad.dtype == torch.float32
