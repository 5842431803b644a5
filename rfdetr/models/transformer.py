"""The transformer behind the backbone: first-stage selection and the decoder."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.attention import attention
from rfdetr.models.deformable_attention import DeformableAttention, Memory, SamplingFrame
from rfdetr.models.fused import Linear, feed_forward, linear
from rfdetr.models.heads import MLP, BoxHead, class_head, decode_boxes
from rfdetr.models.position_encoding import sine_box_embedding
from rfdetr.models.two_stage import FirstStage, GroupHeads, Selection, make_proposals, valid_extent


class TransformerOutput(NamedTuple):
    hidden: Tensor  # (layers, B, N, D), normed
    reference: Tensor  # (B, N, 4) cxcywh, shared by all layers
    encoder: Selection


class SelfAttention(nn.Module):
    """Multi-head self-attention inside query groups, with the packed parameters of `nn.MultiheadAttention`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, num_groups: int) -> Tensor:
        """x, position (B, N, D) -> (B, N, D); the position is part of queries and keys, not of values."""
        batch, num_queries, width = x.shape
        groups = (batch * num_groups, num_queries // num_groups)
        weight_qk, weight_v = self.in_proj_weight.split((2 * width, width))
        bias_qk, bias_v = self.in_proj_bias.split((2 * width, width))
        qk = linear(x + position, weight_qk, bias_qk).view(*groups, 2, self.num_heads, -1)
        query, key = qk.permute(2, 0, 3, 1, 4).unbind()  # (B * groups, heads, N / groups, D / heads)
        value = linear(x, weight_v, bias_v).view(*groups, self.num_heads, -1).transpose(1, 2)
        attended = attention(query, key, value)
        attended = attended.transpose(1, 2).reshape(batch, num_queries, width)
        return self.out_proj(attended)


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; a LayerNorm after each."""

    def __init__(self, width: int, *, sa_heads: int, ca_heads: int, num_levels: int, num_points: int,
                 ffn_width: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, sa_heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn = DeformableAttention(width, ca_heads, num_levels, num_points)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = Linear(width, ffn_width)
        self.linear2 = Linear(ffn_width, width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.0)
        self.dropout1 = nn.Dropout(0.0)
        self.dropout2 = nn.Dropout(0.0)
        self.dropout3 = nn.Dropout(0.0)

    def forward(self, x: Tensor, position: Tensor, frame: SamplingFrame, memory: Memory, num_groups: int) -> Tensor:
        """x, position (B, N, D) -> (B, N, D)."""
        x = self.norm1(x + self.dropout1(self.self_attn(x, position, num_groups)))
        x = self.norm2(x + self.dropout2(self.cross_attn(x + position, frame, memory)))
        return self.norm3(x + self.dropout3(self._feed_forward(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.training and self.dropout.p:
            return self.linear2(self.dropout(F.relu(self.linear1(x))))
        return feed_forward(x, self.linear1, self.linear2, "relu")


class Decoder(nn.Module):
    """Layers that share one reference box and one position a query."""

    def __init__(self, layer: DecoderLayer, num_layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.num_points = layer.cross_attn.num_points
        self.norm = nn.LayerNorm(width)
        self.ref_point_head = MLP(2 * width, width, width, num_layers=2)

    def forward(self, x: Tensor, reference: Tensor, memory: Memory, num_groups: int) -> Tensor:
        """x (B, N, D), reference (B, N, 4) -> normed output of every layer (layers, B, N, D)."""
        reference = reference[:, :, None]
        if memory.valid_ratios is not None:  # from the unpadded image to the padded map
            reference = reference * torch.cat((memory.valid_ratios, memory.valid_ratios), dim=-1)[:, None]
        position = sine_box_embedding(reference[:, :, 0], x.shape[-1] // 2)
        position = self.ref_point_head(position.to(x.dtype))
        frame = SamplingFrame.of(reference, self.num_points)
        outputs = []
        for layer in self.layers:
            x = layer(x, position, frame, memory, num_groups)
            outputs.append(x)
        return self.norm(torch.stack(outputs))


class Transformer(nn.Module):
    """Two-stage selection and decoder, for `num_groups` independent query groups in training, the first in evaluation.

    Args:
        num_queries: queries a group.
        num_logits: classes and the spare one.
    """

    def __init__(self, width: int, *, num_layers: int, sa_heads: int, ca_heads: int, num_levels: int, num_points: int,
                 ffn_width: int, num_queries: int, num_groups: int, num_logits: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.first_stage = FirstStage()
        layer = DecoderLayer(width, sa_heads=sa_heads, ca_heads=ca_heads, num_levels=num_levels, num_points=num_points,
                             ffn_width=ffn_width)
        self.decoder = Decoder(layer, num_layers, width)
        self.enc_output = nn.ModuleList(nn.Linear(width, width) for _ in range(num_groups))
        self.enc_output_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_groups))
        self._init_weights()
        # After the general rule above: these start like the heads behind the decoder.
        self.enc_out_class_embed = nn.ModuleList(class_head(width, num_logits) for _ in range(num_groups))
        self.enc_out_bbox_embed = nn.ModuleList(BoxHead(width) for _ in range(num_groups))

    def _init_weights(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for layer in self.decoder.layers:
            layer.cross_attn.reset_parameters()

    def copy_heads(self, class_embed: nn.Linear, bbox_embed: BoxHead) -> None:
        """Start every group's first-stage heads as copies of the given ones."""
        for head in self.enc_out_class_embed:
            head.load_state_dict(class_embed.state_dict())
        for head in self.enc_out_bbox_embed:
            head.load_state_dict(bbox_embed.state_dict())

    def forward(self, levels: Sequence[Tensor], masks: Sequence[Tensor] | None, query_deltas: Tensor,
                query_features: Tensor, num_groups: int) -> TransformerOutput:
        """Select tokens, make queries from them, decode.

        Args:
            levels: feature maps (B, D, h, w).
            masks: (B, h, w) bool a level, True = padding; None without padding.
            query_deltas: (N, 4), N = num_queries * num_groups: learned deltas on the selected boxes.
            query_features: (N, D): learned content of the queries.
        """
        memory = _flatten_levels(levels, masks)
        proposals = make_proposals(memory.shapes, masks, memory.tokens.device)
        heads = GroupHeads.of(self.enc_output[:num_groups], self.enc_output_norm[:num_groups],
                              self.enc_out_class_embed[:num_groups], self.enc_out_bbox_embed[:num_groups])
        selection = self.first_stage(memory.tokens, proposals, heads, self.num_queries)
        reference = _query_references(query_deltas, selection.boxes.detach())
        queries = query_features.expand(memory.tokens.shape[0], -1, -1).contiguous()
        hidden = self.decoder(queries, reference, memory, num_groups)
        return TransformerOutput(hidden, reference, selection)


def _flatten_levels(levels: Sequence[Tensor], masks: Sequence[Tensor] | None) -> Memory:
    """Feature maps (B, D, h, w) -> one token sequence, without a copy for one channels-last level."""
    shapes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
    tokens = [level.flatten(2).transpose(1, 2) for level in levels]
    tokens = tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)
    if masks is None:
        return Memory(tokens, shapes, None, None)
    ratios = []
    for mask, (height, width) in zip(masks, shapes):
        valid_width, valid_height = valid_extent(mask)
        ratios.append(torch.stack((valid_width / width, valid_height / height), dim=-1))
    return Memory(tokens, shapes, torch.cat([mask.flatten(1) for mask in masks], dim=1), torch.stack(ratios, dim=1))


def _query_references(deltas: Tensor, selected: Tensor) -> Tensor:
    """deltas (N, 4), selected boxes (B, M, 4) with M <= N -> references (B, N, 4).

    Where the image has fewer tokens than queries, the remaining rows of the table are boxes as they stand, whatever
    group they belong to.
    """
    num_selected = selected.shape[1]
    if num_selected == deltas.shape[0]:
        return decode_boxes(deltas, selected)
    reference = decode_boxes(deltas[:num_selected], selected)
    rest = deltas[num_selected:].to(reference.dtype).expand(selected.shape[0], -1, -1)
    return torch.cat((reference, rest), dim=1)
