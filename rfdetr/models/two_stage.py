"""First stage: every token of the memory proposes a box, and each query group picks its best tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.exporting import cached
from rfdetr.models.fused import grouped_linear
from rfdetr.models.heads import BoxHead, decode_boxes, grouped_boxes, grouped_full_precision, stack_layers

_PROPOSAL_SIZE = 0.05  # side of a proposal on the first level, as a share of the image
_MARGIN = 0.01  # a valid proposal's numbers lie strictly between this and one minus this


class Proposals(NamedTuple):
    boxes: Tensor  # (B or 1, S, 4) cxcywh float32, zeros where invalid
    invalid: Tensor | None  # (B or 1, S) bool; None where all are valid


class Selection(NamedTuple):
    """The chosen tokens of all groups, group after group on the query axis (M = groups * k)."""

    features: Tensor  # (B, M, D)
    logits: Tensor  # (B, M, K)
    boxes: Tensor  # (B, M, 4) cxcywh


class GroupHeads(NamedTuple):
    """The first stage's own layers, one of each a group, their weights stacked on the first axis."""

    output: tuple[Tensor, Tensor]  # weight (G, D, D), bias (G, D)
    norm: tuple[Tensor, Tensor]  # (G, D) each
    classes: tuple[Tensor, Tensor]  # (G, K, D), (G, K)
    boxes: Sequence[tuple[Tensor, Tensor]]  # of each layer of the box heads (G, O, D), (G, O)
    eps: float  # of the norm

    @classmethod
    def of(cls, output: Sequence[nn.Linear], norm: Sequence[nn.LayerNorm], classes: Sequence[nn.Linear],
           boxes: Sequence[BoxHead]) -> "GroupHeads":
        box_layers = [stack_layers(layers) for layers in zip(*(head.layers for head in boxes))]
        return cls(*(stack_layers(layers) for layers in (output, norm, classes)), box_layers, norm[0].eps)


def make_proposals(shapes: Sequence[tuple[int, int]], masks: Sequence[Tensor] | None,
                   device: torch.device) -> Proposals:
    """One proposal a cell of every level, relative to the unpadded image, in float32 whatever the model computes in.

    Args:
        shapes: (h, w) of the levels.
        masks: (B, h, w) bool a level, True = padding; None where no image has any.
    """
    if masks is None:
        return _unpadded_proposals(tuple(shapes), device)
    extents = [valid_extent(mask) for mask in masks]
    boxes = _grid_boxes(shapes, [(width[:, None, None], height[:, None, None]) for width, height in extents], device)
    invalid = _reach_edges(boxes) | torch.cat([mask.flatten(1) for mask in masks], dim=1)
    return Proposals(boxes.masked_fill(invalid[..., None], 0.0), invalid)


@cached
def _unpadded_proposals(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Proposals:
    with torch.inference_mode(False):  # what an evaluation makes is used in training too
        boxes = _grid_boxes(shapes, [(width, height) for height, width in shapes], device)
        if all(0.5 / side > _MARGIN for shape in shapes for side in shape):
            return Proposals(boxes, None)
        invalid = _reach_edges(boxes)
        return Proposals(boxes.masked_fill(invalid[..., None], 0.0), invalid)


def _grid_boxes(shapes: Sequence[tuple[int, int]], extents: Sequence[tuple], device: torch.device) -> Tensor:
    """(B or 1, S, 4), where extents are the unpadded width and height of each level: numbers, or tensors (B, 1, 1)."""
    boxes = []
    for level, ((height, width), extent) in enumerate(zip(shapes, extents)):
        rows = torch.arange(height, dtype=torch.float32, device=device)[:, None].expand(height, width) + 0.5
        cols = torch.arange(width, dtype=torch.float32, device=device).expand(height, width) + 0.5
        centres = torch.stack((cols / extent[0], rows / extent[1]), dim=-1).reshape(-1, height, width, 2)
        sizes = torch.full_like(centres, _PROPOSAL_SIZE * 2.0**level)
        boxes.append(torch.cat((centres, sizes), dim=-1).flatten(1, 2))
    return torch.cat(boxes, dim=1)


def _reach_edges(boxes: Tensor) -> Tensor:
    return ~((boxes > _MARGIN) & (boxes < 1 - _MARGIN)).all(-1)


def valid_extent(mask: Tensor) -> tuple[Tensor, Tensor]:
    """mask (B, h, w) bool, True = padding -> unpadded width and height in cells, (B,) float32 each."""
    return (~mask[:, 0, :]).sum(1, dtype=torch.float32), (~mask[:, :, 0]).sum(1, dtype=torch.float32)


def valid_share(mask: Tensor) -> Tensor:
    """mask (B, H, W) bool, True = padding -> unpadded share of height and width, (B, 2) float32."""
    width, height = valid_extent(mask)
    return torch.stack((height / mask.shape[1], width / mask.shape[2]), dim=1)


class FirstStage(nn.Module):
    """`select_tokens` as a unit to compile; the layers are the transformer's."""

    def forward(self, memory: Tensor, proposals: Proposals, heads: GroupHeads, num_queries: int) -> Selection:
        return select_tokens(memory, proposals, heads, num_queries)


def select_tokens(memory: Tensor, proposals: Proposals, heads: GroupHeads, num_queries: int) -> Selection:
    """Pick the `num_queries` tokens (fewer where there are fewer) with the highest class score, in each group.

    memory (B, S, D). Invalid tokens are zeroed but stay in the ranking. The ranking itself needs no gradient, so the
    groups' layers run once over all tokens without a graph, and with a graph only over the chosen ones.
    """
    batch, num_tokens, _ = memory.shape
    groups, chosen = len(heads.output[0]), min(num_queries, num_tokens)
    if proposals.invalid is not None:
        memory = memory.masked_fill(proposals.invalid[..., None], 0.0)
    best = _class_scores(memory, heads).topk(chosen, dim=-1).indices  # (G, B, k)
    starts = torch.arange(0, batch * num_tokens, num_tokens, device=memory.device)
    rows = (best + starts[:, None]).flatten()
    features = memory.flatten(0, 1).index_select(0, rows).unflatten(0, (groups, -1))  # (G, B * k, D)
    gains, offsets = heads.norm
    features = F.layer_norm(grouped_linear(features, *heads.output), features.shape[-1:], eps=heads.eps)
    features = torch.addcmul(offsets[:, None], features, gains[:, None])
    boxes = proposals.boxes.expand(batch, -1, -1).flatten(0, 1).index_select(0, rows).unflatten(0, (groups, -1))
    boxes = boxes.to(torch.promote_types(memory.dtype, boxes.dtype))
    results = (features, grouped_full_precision(features, *heads.classes),
               decode_boxes(grouped_boxes(heads.boxes, features), boxes))
    # (G, B * k, X) -> (B, G * k, X)
    return Selection(*(x.unflatten(1, (batch, chosen)).transpose(0, 1).flatten(1, 2) for x in results))


@torch.no_grad()
def _class_scores(memory: Tensor, heads: GroupHeads) -> Tensor:
    """memory (B, S, D) -> highest class logit of every token, (G, B, S).

    The norms' gains and offsets are folded into the class layers, which spares two passes over G * B * S * D numbers.
    """
    groups, (batch, num_tokens, width) = len(heads.output[0]), memory.shape
    (weight, bias), (gains, offsets), (classes, class_bias) = heads.output, heads.norm, heads.classes
    features = F.linear(memory, weight.flatten(0, 1), bias.flatten()).view(batch * num_tokens, groups, width)
    features = F.layer_norm(features, (width,), eps=heads.eps).transpose(0, 1)
    with torch.autocast(memory.device.type, enabled=False):
        bias = torch.baddbmm(class_bias[:, None], offsets[:, None], classes.mT)
        folded = (classes * gains[:, None]).mT
        scores = torch.baddbmm(bias, features.to(folded.dtype), folded).amax(-1)
    return scores.view(groups, batch, num_tokens)
