"""Attention gives the same whichever kernel it takes."""

import pytest
import torch
import torch.nn.functional as F

from rfdetr.models.attention import attention


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_equals_the_fused_kernel_with_gradients(dtype, tolerance):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 17, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    results = []
    for function in (attention, F.scaled_dot_product_attention):
        output = function(*inputs)
        assert output.dtype == dtype
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    torch.testing.assert_close(results[0], results[1], atol=tolerance * 10, rtol=tolerance)
