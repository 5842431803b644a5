"""Mask head: one embedding a pixel, one a query; their product is the query's mask."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.projector import pointwise_conv


class SpatialBlock(nn.Module):
    """Depthwise 3x3 convolution, LayerNorm, linear layer and GELU beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D, h, w) -> the same shape, channels-last."""
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = F.gelu(self.pwconv1(self.norm(y)))
        return x + y.permute(0, 3, 1, 2)


class QueryBlock(nn.Module):
    """LayerNorm and a two-layer MLP beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(self.norm_in(x))


class SegmentationHead(nn.Module):
    """Masks for every decoder layer and for the first stage.

    Args:
        num_layers: decoder layers; each sees the pixel map after one more spatial block.
        downsample_ratio: input pixels a mask pixel.
    """

    def __init__(self, width: int, num_layers: int, downsample_ratio: int) -> None:
        super().__init__()
        self.downsample_ratio = downsample_ratio
        self.blocks = nn.ModuleList(SpatialBlock(width) for _ in range(num_layers))
        self.spatial_features_proj = nn.Conv2d(width, width, 1)
        self.query_features_block = QueryBlock(width)
        self.query_features_proj = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, hidden: Tensor, encoder_features: Tensor,
                image_size: tuple[int, int]) -> tuple[list, Tensor | dict[str, Tensor]]:
        """Make the masks of all layers and of the first stage.

        Args:
            features: the first level (B, D, h, w).
            hidden: decoder outputs (layers, B, N, D).
            encoder_features: selected tokens (B, M, D).

        Returns:
            Logits (B, N, H // r, W // r) for each layer and (B, M, H // r, W // r) for the first stage. In training, in
            their place, the factors `spatial_features` (B, D, H // r, W // r), `query_features` (B, N, D) and `bias`
            (1): the loss needs few queries at few points, and the product would fill the memory.
        """
        size = (image_size[0] // self.downsample_ratio, image_size[1] // self.downsample_ratio)
        pixels = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        encoder_masks = self._masks(pixels, self._embed_queries(encoder_features))
        layer_masks = []
        for block, queries in zip(self.blocks, self._embed_queries(hidden)):
            pixels = block(pixels)
            layer_masks.append(self._masks(pixels, queries))
        return layer_masks, encoder_masks

    def _embed_queries(self, queries: Tensor) -> Tensor:
        return self.query_features_proj(self.query_features_block(queries))

    def _masks(self, pixels: Tensor, queries: Tensor) -> Tensor | dict[str, Tensor]:
        """pixels (B, D, h, w), queries (B, N, D) -> logits (B, N, h, w), or their factors in training."""
        spatial = pointwise_conv(pixels, self.spatial_features_proj.weight, self.spatial_features_proj.bias)
        if self.training:
            return {"spatial_features": spatial, "query_features": queries, "bias": self.bias}
        return torch.baddbmm(self.bias, queries, spatial.flatten(2)).unflatten(2, spatial.shape[2:])
