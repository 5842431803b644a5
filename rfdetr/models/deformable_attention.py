"""Deformable cross-attention: every query looks at a few points around its box on every level."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.fused import Linear


class Memory(NamedTuple):
    """What the decoder looks at: the feature levels as one token sequence."""

    tokens: Tensor  # (B, S, D), levels one after the other, row-major
    shapes: tuple[tuple[int, int], ...]  # (h, w) of each level
    padding: Tensor | None  # (B, S) bool, True = padding
    valid_ratios: Tensor | None  # (B, L, 2) unpadded share (x, y) of each level


class SamplingFrame(NamedTuple):
    """Where queries look from, in grid_sample's coordinates (-1 and 1 are the map's edges); the same for all layers.

    Kept in the references' precision: a bfloat16 coordinate would be off by cells.
    """

    centres: Tensor  # (B, 1, N, L or 1, 1, 2)
    reach: Tensor  # the same shape: how far an offset of 1 leads; one of `num_points` reaches the edge of the box

    @classmethod
    def of(cls, reference: Tensor, num_points: int) -> "SamplingFrame":
        """reference (B, N, L or 1, 4) cxcywh on the padded map."""
        centres, sizes = reference[:, None, :, :, None].chunk(2, dim=-1)
        return cls(2 * centres - 1, sizes / num_points)


class DeformableAttention(nn.Module):
    """Multi-head attention over `num_points` sampled points a head and level."""

    def __init__(self, width: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.sampling_offsets = Linear(width, num_heads * num_levels * num_points * 2)
        self.attention_weights = Linear(width, num_heads * num_levels * num_points)
        self.value_proj = Linear(width, width)
        self.output_proj = Linear(width, width)

    def reset_parameters(self) -> None:
        """Fresh offsets fan out: every head in its own direction, every point one step further; all weights equal."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * steps[:, None]  # (h, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())

    def forward(self, query: Tensor, frame: SamplingFrame, memory: Memory) -> Tensor:
        """Sample the memory around the queries' references: query (B, N, D) -> (B, N, D)."""
        value = self.value_proj(memory.tokens)
        if memory.padding is not None:
            value = value.masked_fill(memory.padding[..., None], 0.0)
        grid = self._sampling_grid(query, frame)  # (B, h, N, L, P, 2)
        sampled = _sample_levels(value.to(grid.dtype), memory.shapes, grid)  # (B * h, D / h, N, L * P)
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B * h, 1, N, L * P)
        output = (sampled * weights).sum(-1).view(*query.shape[:1], -1, query.shape[1])
        output = output.transpose(1, 2).to(query.dtype).contiguous()
        return self.output_proj(output)

    def _sampling_grid(self, query: Tensor, frame: SamplingFrame) -> Tensor:
        """Where to look: (B, h, N, L, P, 2)."""
        offsets = self.sampling_offsets(query).to(frame.centres.dtype)
        offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2)).transpose(1, 2)
        return torch.addcmul(frame.centres, offsets, frame.reach)


def _sample_levels(value: Tensor, shapes: Sequence[tuple[int, int]], grid: Tensor) -> Tensor:
    """value (B, S, D), grid (B, h, N, L, P, 2) -> bilinear samples (B * h, D / h, N, L * P)."""
    num_heads = grid.shape[1]
    repeats = value.is_cuda and torch.are_deterministic_algorithms_enabled()
    samples = []
    tokens = value.split([height * width for height, width in shapes], dim=1)
    for level, (height, width) in enumerate(shapes):
        maps = tokens[level].transpose(1, 2).reshape(value.shape[0] * num_heads, -1, height, width)
        points = grid[:, :, :, level].flatten(0, 1)
        samples.append(sample_repeatably(maps, points) if repeats else
                       F.grid_sample(maps, points, mode="bilinear", padding_mode="zeros", align_corners=False))
    return samples[0] if len(samples) == 1 else torch.cat(samples, dim=-1)


def sample_repeatably(maps: Tensor, points: Tensor) -> Tensor:
    """``F.grid_sample`` (bilinear, zeros outside) of maps (M, C, H, W) at points (M, N, P, 2) -> (M, C, N, P).

    On CUDA grid_sample's backward adds up in an order that differs from run to run. `index_select`'s does not, if PyTorch has
    been asked for deterministic algorithms.
    """
    channels, height, width = maps.shape[1:]
    rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    first = torch.arange(0, len(rows), height * width, device=maps.device).view(-1, 1, 1)
    x, y = (((points[..., axis] + 1) * size - 1) / 2 for axis, size in enumerate((width, height)))
    left, top = x.detach().floor(), y.detach().floor()
    total: Any = 0
    for at_x, share_x in ((left, left + 1 - x), (left + 1, x - left)):
        for at_y, share_y in ((top, top + 1 - y), (top + 1, y - top)):
            is_inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
            column, row = (at.nan_to_num().clamp(0, size - 1).long() for at, size in ((at_x, width), (at_y, height)))
            found = rows.index_select(0, (first + row * width + column).flatten()).view(*column.shape, channels)
            total = total + found * (share_x * share_y * is_inside)[..., None]
    return total.permute(0, 3, 1, 2)
