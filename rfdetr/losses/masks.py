"""Mask costs and losses, measured at sampled points instead of all pixels.

Points are (x, y) in [0, 1], relative to the image, so that predictions and targets may differ in resolution.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rfdetr.losses.stacked import MaskPrediction, at_least_float32

OVERSAMPLING = 3  # candidates for each point that is kept
UNCERTAIN_SHARE = 0.75  # of the points that are kept; the others are uniform


def mask_size(masks: MaskPrediction) -> tuple[int, int]:
    """Height and width of predicted masks."""
    height, width = (masks["spatial_features"] if isinstance(masks, dict) else masks).shape[-2:]
    return height, width


def sample_bilinear(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps (n, c, h, w) at points (n, P, 2) -> (n, c, P); outside, the border goes on."""
    maps = at_least_float32(maps)  # 16 bits would also round the points to a few hundred places
    grid = (2 * points - 1)[:, :, None].to(maps.dtype)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[..., 0]


def sample_nearest(masks: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """Read masks ``index`` (n,) of (T, h, w) at points (n or 1, P, 2) -> (n, P), without copying whole masks."""
    height, width = masks.shape[1:]
    x, y = points.unbind(-1)
    column = (x * width - 0.5).round().clamp(0, width - 1).long()
    row = (y * height - 0.5).round().clamp(0, height - 1).long()
    return masks.flatten().take(index[:, None] * (height * width) + row * width + column)


def predictions_at_points(masks: MaskPrediction, points: Tensor) -> Tensor:
    """Logits of all queries at the same points (1, P, 2) -> (B, n, P)."""
    if not isinstance(masks, dict):
        return sample_bilinear(masks, points.expand(len(masks), -1, -1))
    features = masks["spatial_features"]
    sampled = sample_bilinear(features, points.expand(len(features), -1, -1))
    return at_least_float32(masks["query_features"]) @ sampled + at_least_float32(masks["bias"])


def mask_costs(logits: Tensor, labels: Tensor, blocks: Sequence[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
    """Mean cross entropy and dice loss at P points, of all queries of an image with its objects.

    logits (B, n, P), labels (T, P) of 0 and 1; a block (image, start, stop) asks for the objects start..stop of T.
    Returns two tensors (rows, n), rows = objects of all blocks in order.
    """
    num_points = logits.shape[-1]
    probabilities = logits.sigmoid()
    entropy = F.softplus(logits).mean(-1)  # (B, n), what the cross entropy would be if all labels were 0
    total = probabilities.sum(-1)  # (B, n)
    ce, dice = [], []
    for image, start, stop in blocks:
        objects = labels[start:stop]
        ce.append(entropy[image] - objects @ logits[image].T / num_points)
        overlap = objects @ probabilities[image].T
        dice.append(1 - (2 * overlap + 1) / (objects.sum(-1, keepdim=True) + total[image] + 1))
    return torch.cat(ce), torch.cat(dice)


def matched_mask_logits(masks: MaskPrediction, rows: Sequence[Tensor]) -> Tensor:
    """Full logits of the queries ``rows`` (m,) of each image -> (sum of m, h, w); part of the graph even when empty."""
    if not isinstance(masks, dict):
        return at_least_float32(torch.cat([image.index_select(0, index) for image, index in zip(masks, rows)]))
    features = at_least_float32(masks["spatial_features"])
    queries = at_least_float32(masks["query_features"])
    logits = [query.index_select(0, index) @ image.flatten(1) for query, image, index in zip(queries, features, rows)]
    return torch.cat(logits).unflatten(1, features.shape[2:]) + at_least_float32(masks["bias"])


def mask_losses(
    logits: Tensor, masks: Tensor, index: Tensor, point_sample_ratio: int, *, counted: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy and dice loss of mask logits (n, h, w) with targets ``index`` (n,) of (T, H, W), summed over the
    ``counted`` ones (n,)."""
    if not len(logits):
        return logits.sum(), logits.sum()
    points = training_points(logits.detach(), point_sample_ratio)
    sampled = sample_bilinear(logits[:, None], points)[:, 0]
    labels = sample_nearest(masks, index, points).to(sampled.dtype)
    ce = F.binary_cross_entropy_with_logits(sampled, labels, reduction="none").mean(1)
    probabilities = sampled.sigmoid()
    overlap = (probabilities * labels).sum(1)
    dice = 1 - (2 * overlap + 1) / (probabilities.sum(1) + labels.sum(1) + 1)
    return (ce * counted).sum(), (dice * counted).sum()


def training_points(logits: Tensor, point_sample_ratio: int) -> Tensor:
    """Draw points (n, P, 2) for mask logits (n, h, w): mostly where they are least certain, the rest anywhere."""
    count, height, width = logits.shape
    num_points = max(height, height * width // point_sample_ratio)
    num_uncertain = int(UNCERTAIN_SHARE * num_points)
    candidates = torch.rand(count, OVERSAMPLING * num_points, 2, device=logits.device)
    certainty = sample_bilinear(logits[:, None], candidates)[:, 0].abs()
    chosen = (-certainty).topk(num_uncertain, dim=1).indices
    points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    if num_uncertain == num_points:
        return points
    uniform = torch.rand(count, num_points - num_uncertain, 2, device=logits.device)
    return torch.cat([points, uniform], dim=1)
