"""The image encoder: a ViT with windowed and global attention blocks, and the projector behind it."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rfdetr.errors import InputError
from rfdetr.models.attention import attention
from rfdetr.models.exporting import cached
from rfdetr.models.fused import feed_forward, linear, scaled_add
from rfdetr.models.projector import Projector

_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Linear embedding of image patches, kept as a convolution kernel `proj` (the checkpoints' layout)."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor, num_windows: int) -> Tensor:
        """images (B, 3, H, W) -> tokens (B, windows, tokens of a window, C), all in row-major order.

        The patches are cut and sorted into windows on the pixels, which are few beside the features; the convolution is
        then one matrix product that writes the tokens where they belong.
        """
        batch, channels, height, width = images.shape
        size = self.patch_size
        rows, cols = height // size // num_windows, width // size // num_windows
        patches = images.reshape(batch, channels, num_windows, rows, size, num_windows, cols, size)
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, num_windows**2, rows * cols, -1)
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class WindowedBlock(Block):
    """A ViT block (timm's, with its parameter names) on the windows of images."""

    def forward(self, tokens: Tensor, num_joined: int, keep: Tensor | None = None) -> Tensor:
        """tokens (B * windows, T, C) -> the same after the block.

        Args:
            num_joined: windows that attend to each other: 1, or all of an image as one sequence. They are joined only in the
                attention: drop path has to draw for every window on its own.
            keep: chance () of each branch to be kept, for drop path; a tensor, since compiled code is made anew for each
                Python number that it meets.
        """
        normed = self.norm1(tokens)
        if num_joined > 1:
            normed = normed.reshape(-1, num_joined * tokens.shape[1], tokens.shape[2])
        attended = _self_attention(self.attn, normed).reshape(tokens.shape)
        tokens = scaled_add(tokens, drop_path(attended, keep), self.ls1.gamma)
        mixed = feed_forward(self.norm2(tokens), self.mlp.fc1, self.mlp.fc2, "gelu")
        return scaled_add(tokens, drop_path(mixed, keep), self.ls2.gamma)


def drop_path(branch: Tensor, keep: Tensor | None) -> Tensor:
    """Leave out the branch (N, ...) of some of the N samples, and scale it up for the others (Huang et al., ECCV 2016)."""
    if keep is None:
        return branch
    drawn = torch.rand(len(branch), *(1 for _ in branch.shape[1:]), device=branch.device)
    return branch * ((drawn < keep) / keep).to(branch.dtype)


class WindowedViT(nn.Module):
    """ViT whose blocks attend inside windows, except the global ones; parameter names are timm's.

    Args:
        taps: numbers of blocks after which a feature map is taken, ascending. The same numbers, read as block indices,
            say which blocks attend over the whole image. Blocks after the last tap cannot learn: they are frozen and
            never run.
        grid_size: patches a side of the learned position table.
        num_windows: windows a side.
        checkpoint_blocks: recompute the blocks' activations in backward instead of keeping them.
    """

    def __init__(self, *, width: int, depth: int, num_heads: int, patch_size: int, grid_size: int, num_windows: int,
                 taps: Sequence[int], checkpoint_blocks: bool = False) -> None:
        super().__init__()
        if not taps or list(taps) != sorted(set(taps)) or not 1 <= taps[0] <= taps[-1] <= depth:
            raise ValueError(f"out_feature_indexes={tuple(taps)}: must be ascending block counts from 1 to {depth}")
        self.patch_size = patch_size
        self.grid_size = grid_size
        self.num_windows = num_windows
        self.taps = tuple(taps)
        self.checkpoint_blocks = checkpoint_blocks
        self.patch_embed = PatchEmbed(patch_size, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid_size**2, width))
        norm_layer = partial(nn.LayerNorm, eps=_EPS)
        self.blocks = nn.ModuleList(
            WindowedBlock(width, num_heads, mlp_ratio=4.0, qkv_bias=True, init_values=1.0, norm_layer=norm_layer)
            for _ in range(depth)
        )
        self.drop_path_rates = (0.0,) * depth
        self._keep: Tensor | None = None  # (depth,) of the rates, on the device of the last batch
        self.register_buffer("fixed_positions", None)  # what `fix_positions` made
        self.norm = norm_layer(width)
        self._init_weights()
        for block in self.blocks[self.taps[-1]:]:
            block.requires_grad_(False)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def update_drop_path(self, rate: float) -> None:
        """Set the drop-path rates of the blocks: 0 for the first, rising evenly to `rate` for the last."""
        depth = len(self.blocks)
        self.drop_path_rates = tuple(rate * index / max(1, depth - 1) for index in range(depth))
        self._keep = None

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> the taps' maps side by side, (B, taps, C, H/p, W/p), with channels-last strides."""
        height, width = images.shape[-2:]
        divisor = self.patch_size * self.num_windows
        if height % divisor or width % divisor:
            raise InputError(f"input of {height} x {width} pixels: both sides must be divisible by patch_size x "
                             f"num_windows = {self.patch_size} x {self.num_windows} = {divisor}; resize or pad them")
        grid = (height // self.patch_size, width // self.patch_size)
        tokens = self._embed(images, grid)
        tapped, keep = [], self._keep_chances(images.device)
        for index in range(self.taps[-1]):
            block, num_joined = self.blocks[index], self.num_windows**2 if index in self.taps else 1
            if self.checkpoint_blocks and self.training:
                tokens = checkpoint(block, tokens, num_joined, keep[index], use_reentrant=False)
            else:
                tokens = block(tokens, num_joined, keep[index])
            if index + 1 in self.taps:
                tapped.append(tokens)
        return self._feature_maps(self.norm(torch.stack(tapped, dim=2)), grid)

    def _keep_chances(self, device: torch.device) -> Sequence[Tensor | None]:
        if not (self.training and any(self.drop_path_rates)):
            return (None,) * len(self.blocks)
        if self._keep is None or self._keep.device != device:
            self._keep = (1 - torch.tensor(self.drop_path_rates)).to(device)
        return self._keep.unbind()

    def _embed(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """images (B, 3, H, W) -> tokens (B * windows, 1 + tokens of a window, C); every window has its own CLS."""
        first, others = self._positions(grid)
        patches = (self.patch_embed(images, self.num_windows) + others).flatten(0, 1)
        cls_token = (self.cls_token + first).expand(patches.shape[0], -1, -1)
        return torch.cat((cls_token.to(patches.dtype), patches), dim=1)

    def fix_positions(self, grid: tuple[int, int]) -> None:
        """Resample the position table for inputs of these patches (rows, cols) and no others: exported files cannot."""
        self.fixed_positions = self._positions(grid)[1].detach()

    def _positions(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The position of CLS (1, 1, C), and the others resampled to `grid` -> (windows, tokens of a window, C)."""
        side, windows = self.grid_size, self.num_windows
        first, table = self.pos_embed.split((1, side**2), dim=1)
        if self.fixed_positions is not None:
            return first, self.fixed_positions
        if grid != (side, side):
            table = _resize(table.reshape(side, side, -1), grid)
        rows, cols = grid[0] // windows, grid[1] // windows
        table = table.reshape(windows, rows, windows, cols, -1).transpose(1, 2)
        return first, table.reshape(windows**2, rows * cols, -1)

    def _feature_maps(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens (B * windows, 1 + T, taps, C) -> (B, taps, C, rows, cols): CLS dropped, windows put back in place."""
        windows = self.num_windows
        rows, cols = grid[0] // windows, grid[1] // windows
        tokens = tokens[:, 1:].reshape(-1, windows, windows, rows, cols, *tokens.shape[2:]).transpose(2, 3)
        return tokens.reshape(-1, *grid, *tokens.shape[5:]).permute(0, 3, 4, 1, 2)


def _resize(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic resize of the position table (h, w, C) -> (*size, C), along one axis and then the other.

    As two matrix products it repeats bit for bit, also in backward on a GPU, and any device can do it.
    """
    precise = torch.promote_types(table.dtype, torch.float32)
    rows, cols = (_resize_weights(old, new, precise, table.device) for old, new in zip(table.shape[:2], size))
    with torch.autocast(table.device.type, enabled=False):
        resized = cols @ table.to(precise)  # (h, W, C)
        return (rows @ resized.flatten(1)).view(*size, -1).to(table.dtype)


@cached
def _resize_weights(old: int, new: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(new, old): what the pixels of a resized axis are made of; that is what a resize makes of unit vectors.

    Antialiasing, also where it grows, changes the cubic's coefficient, and the published weights were made with that one.
    """
    with torch.inference_mode(False):  # what an evaluation makes is used in training too
        # Apple's GPUs lack the operation
        unit = torch.eye(old, dtype=dtype, device="cpu" if device.type == "mps" else device)[None, None]
        weights = F.interpolate(unit, size=(new, old), mode="bicubic", align_corners=False, antialias=True)
        return weights[0, 0].to(device)


def _self_attention(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Run timm's attention layer on tokens (B, T, C), with the kernel of `attention`."""
    # taken apart before they are transposed: backward then puts the gradients together where they belong, without a copy
    parts = linear(tokens, layer.qkv.weight, layer.qkv.bias).unflatten(-1, (3, layer.num_heads, -1)).unbind(2)
    attended = attention(*(part.transpose(1, 2) for part in parts)).transpose(1, 2).flatten(2)
    return linear(attended, layer.proj.weight, layer.proj.bias)


class Backbone(nn.Module):
    """Encoder and projector: images to feature levels."""

    def __init__(self, encoder: WindowedViT, projector: Projector) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.out_feature_indexes = encoder.taps  # layer-wise learning rates count from the last of them

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> levels (B, D, h, w), finest first."""
        return self.projector(self.encoder(images))
