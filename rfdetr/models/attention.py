"""Scaled dot-product attention, by the kernel that is fastest where it runs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for query, key, value (..., heads, T, d).

    Training in 16 bits on a CPU takes three matrix operations instead of PyTorch's fused kernel, whose backward is 2 to
    5 times slower there (measured with PyTorch 2.15 on an EPYC with AVX512-BF16: 87 ms against 16 ms for 40 x 4 heads of
    100 tokens). So does training on CUDA that has to repeat every bit: not all of the fused kernels do.
    """
    is_slow = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if torch.is_grad_enabled() and (is_slow or query.is_cuda and torch.are_deterministic_algorithms_enabled()):
        weights = ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(-1)
        return weights.to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)
