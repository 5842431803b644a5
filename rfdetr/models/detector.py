"""RFDETR, the whole detector: images to class logits, boxes and, for some variants, masks."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.backbone import Backbone
from rfdetr.models.heads import BoxHead, class_head, decode_boxes, full_precision
from rfdetr.models.segmentation import SegmentationHead
from rfdetr.models.transformer import Transformer
from rfdetr.models.two_stage import valid_share
from rfdetr.nested_tensor import NestedTensor


class RFDETR(nn.Module):
    """Detector with learned queries on top of selected image tokens.

    Args:
        num_queries: queries a group.
        num_groups: query groups in training; evaluation uses the first.
        num_logits: classes and the spare one.
    """

    def __init__(self, backbone: Backbone, transformer: Transformer, *, width: int, num_queries: int, num_groups: int,
                 num_logits: int, segmentation_head: SegmentationHead | None = None) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.num_groups = num_groups
        self.backbone = backbone
        self.transformer = transformer
        self.class_embed = class_head(width, num_logits)
        self.bbox_embed = BoxHead(width)
        transformer.copy_heads(self.class_embed, self.bbox_embed)
        self.refpoint_embed = nn.Embedding(num_queries * num_groups, 4)
        nn.init.zeros_(self.refpoint_embed.weight)
        self.query_feat = nn.Embedding(num_queries * num_groups, width)
        self.segmentation_head = segmentation_head

    def forward(self, samples: NestedTensor | Tensor, targets: Sequence[dict] | None = None) -> dict:
        """Detect objects; `targets` is accepted for trainers that pass it and is not used.

        Args:
            samples: normalised images (B, 3, H, W), sides divisible by patch_size * num_windows; a plain tensor has no
                padding.

        Returns:
            `pred_logits` (B, N, num_logits), `pred_boxes` (B, N, 4) cxcywh relative to the unpadded image, with masks
            `pred_masks` (see `SegmentationHead`); `aux_outputs`, a list of such dicts for the other decoder layers; and
            `enc_outputs`, such a dict for the first stage; of padded samples `valid_extent` (B, 2), the unpadded share of
            height and width, since masks are of the whole input. N = num_queries, in training times num_groups (group-major).
        """
        images, mask = (samples, None) if isinstance(samples, Tensor) else (samples.tensors, samples.mask)
        if mask is not None and not samples.has_padding:
            mask = None
        levels = self.backbone(images)
        masks = None if mask is None else _level_masks(mask, levels)
        num_groups = self.num_groups if self.training else 1
        decoded = self.transformer(levels, masks, *self._queries(num_groups), num_groups)
        logits = full_precision(self.class_embed, decoded.hidden)  # (layers, B, N, K)
        boxes = decode_boxes(self.bbox_embed(decoded.hidden), decoded.reference)
        layers = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits.unbind(), boxes.unbind())]
        encoder = {"pred_logits": decoded.encoder.logits, "pred_boxes": decoded.encoder.boxes}
        if self.segmentation_head is not None:
            layer_masks, encoder["pred_masks"] = self.segmentation_head(
                levels[0], decoded.hidden, decoded.encoder.features.to(decoded.hidden.dtype), tuple(images.shape[-2:]))
            for layer, pred_masks in zip(layers, layer_masks):
                layer["pred_masks"] = pred_masks
        outputs = {**layers[-1], "aux_outputs": layers[:-1], "enc_outputs": encoder}
        if mask is not None:
            outputs["valid_extent"] = valid_share(mask)
        return outputs

    def _queries(self, num_groups: int) -> tuple[Tensor, Tensor]:
        """Learned boxes and contents of the first `num_groups` groups of queries."""
        tables = self.refpoint_embed.weight, self.query_feat.weight
        if num_groups == self.num_groups:  # a slice of all of it would cost two kernels in backward
            return tables
        num_rows = self.num_queries * num_groups
        return tables[0][:num_rows], tables[1][:num_rows]

    @property
    def blocks(self) -> list[nn.Module]:
        """The repeated blocks of ViT and decoder, in which nearly all time is spent: units to shard."""
        encoder = self.backbone.encoder
        return [*encoder.blocks[: encoder.taps[-1]], *self.transformer.decoder.layers]

    @property
    def compile_units(self) -> list[nn.Module]:
        """What `torch.compile` takes whole: repeated blocks share their code, so one is compiled for all of them."""
        return [*self.blocks, self.backbone.projector, self.transformer.first_stage, self.bbox_embed]

    def update_drop_path(self, rate: float) -> None:
        """Set the drop-path rates of the ViT blocks: 0 for the first, rising evenly to `rate` for the last."""
        self.backbone.encoder.update_drop_path(rate)

    def update_dropout(self, p: float) -> None:
        """Set the dropout rate of the decoder."""
        for module in self.transformer.modules():
            if isinstance(module, nn.Dropout):
                module.p = p


def _level_masks(mask: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    """Pixel mask (B, H, W) -> a mask (B, h, w) for each level (B, D, h, w)."""
    pixels = mask[:, None].float()
    return [F.interpolate(pixels, size=level.shape[-2:], mode="nearest")[:, 0].bool() for level in levels]
