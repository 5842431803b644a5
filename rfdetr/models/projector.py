"""From the encoder's maps, all at one stride, to the decoder's feature levels.

Everything here runs on maps (B, C, h, w) with channels-last strides: that is how the encoder's tokens already lie in
memory, how the decoder wants them, and what a LayerNorm over channels needs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.fused import linear

_EPS = 1e-6


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> the same shape, channels-last."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, _EPS)
        return x.permute(0, 3, 1, 2)


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution as the matrix product that it is on channels-last maps: x (B, C, h, w) -> (B, C', h, w).

    It also keeps the weight's gradient contiguous; a convolution's would have other strides, which DDP has to copy.
    """
    return linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """Convolution without bias, channel LayerNorm, activation. The norm is called `bn` in the checkpoints."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1,
                 activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.bn = ChannelLayerNorm(out_channels)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> (B, C', h', w')."""
        x = pointwise_conv(x, self.conv.weight) if self.conv.kernel_size == (1, 1) else self.conv(x)
        return self.activation(self.bn(x))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions, without a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(channels, channels, 3)
        self.cv2 = ConvNorm(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Half of the channels goes through a chain of bottlenecks; every intermediate result is kept and fused."""

    def __init__(self, in_channels: int, out_channels: int, num_bottlenecks: int = 3) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.cv1 = ConvNorm(in_channels, 2 * hidden, 1)
        self.m = nn.ModuleList(Bottleneck(hidden) for _ in range(num_bottlenecks))
        self.cv2 = ConvNorm((2 + num_bottlenecks) * hidden, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> (B, D, h, w)."""
        both = self.cv1(x)
        parts = [both]
        x = both.chunk(2, dim=1)[1]
        for bottleneck in self.m:
            x = bottleneck(x)
            parts.append(x)
        return self.cv2(torch.cat(parts, dim=1))


def _sampler(scale: str, channels: int) -> tuple[nn.Sequential, int]:
    """What brings one encoder map to the stride of a level, and how many channels come out."""
    if scale == "P4":
        return nn.Sequential(), channels
    if scale == "P3":
        return nn.Sequential(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2)), channels // 2
    if scale == "P5":
        return nn.Sequential(ConvNorm(channels, channels, 3, stride=2, activation=nn.ReLU)), channels
    raise ValueError(f"projector_scale: unknown level {scale!r}; known: P3, P4, P5")


class Projector(nn.Module):
    """Fuse the encoder's maps into one map of `out_channels` for each level of `scales`."""

    def __init__(self, in_channels: int, num_maps: int, out_channels: int, scales: Sequence[str]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.stages_sampling = nn.ModuleList()
        self.stages = nn.ModuleList()
        for scale in scales:
            samplers, channels = zip(*(_sampler(scale, in_channels) for _ in range(num_maps)))
            self.stages_sampling.append(nn.ModuleList(samplers))
            self.stages.append(nn.Sequential(C2f(sum(channels), out_channels), ChannelLayerNorm(out_channels)))

    def forward(self, maps: Tensor) -> list[Tensor]:
        """maps (B, num_maps, C, h, w) -> levels (B, D, h', w')."""
        levels = []
        for scale, samplers, stage in zip(self.scales, self.stages_sampling, self.stages):
            if scale == "P4":  # the stride of the maps, which lie side by side already
                levels.append(stage(maps.flatten(1, 2)))
                continue
            sampled = [sampler(feature_map) for sampler, feature_map in zip(samplers, maps.unbind(1))]
            levels.append(stage(torch.cat(sampled, dim=1)))
        return levels
