"""From the detector's raw outputs to detections in pixels of the original images."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.models.exporting import is_exporting

# Resized mask pixels held at a time, beside the boolean results: about 100 MB whatever the number of masks.
_MASK_PIXELS_AT_ONCE = 2**23


class Selection(NamedTuple):
    """The best pairs of query and class of every image, best first."""

    scores: Tensor  # (B, k)
    labels: Tensor  # (B, k) int64
    boxes: Tensor  # (B, k, 4) xyxy in image units, not cut at its edges
    queries: Tensor  # (B, k) int64, rows of `pred_masks`

    @classmethod
    def of_file(cls, outputs: dict) -> Selection:
        """Take what an exported file with the selection inside has found; its masks are in the same order."""
        scores = outputs["scores"]
        rows = torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
        return cls(scores, outputs["labels"], outputs["boxes"], rows)


class PostProcess(nn.Module):
    """Keep the `num_select` best (query, class) pairs of every image.

    Every logit competes, also the last one; a query may win with several classes; there is no non-maximum suppression.
    """

    def __init__(self, num_select: int) -> None:
        super().__init__()
        self.num_select = num_select

    @torch.no_grad()
    def forward(self, outputs: dict, target_sizes: Tensor,
                score_threshold: float | None = None) -> list[dict[str, Tensor]]:
        """Turn the outputs of an evaluation forward into detections, best first.

        Args:
            outputs: `pred_logits` (B, Q, K), `pred_boxes` (B, Q, 4) and, with masks, `pred_masks` (B, Q, h, w), of
                which with `valid_extent` (B, 2) only that share of h and w shows the image. Of a file exported with the
                selection inside: `scores`, `labels`, `boxes` and `pred_masks` of those.
            target_sizes: (B, 2) int64, height and width of the original images in pixels.
            score_threshold: drop detections that do not score higher, before their masks are resized; this waits for
                the device, as masks do.

        Returns:
            For each image `scores` (k,), `labels` (k,) int64, `boxes` (k, 4) xyxy pixels inside the image and, with
            masks, `masks` (k, 1, H, W) bool. Equal scores come in the order of query * K + class.
        """
        selection = Selection.of_file(outputs) if "scores" in outputs else self.select(outputs)
        queries, scores = selection.queries, selection.scores
        if len(target_sizes) != len(scores):
            raise ValueError(f"PostProcess: target_sizes has {len(target_sizes)} rows for {len(scores)} images")
        boxes = pixel_boxes(selection.boxes, target_sizes)
        results = [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(scores, selection.labels, boxes)]
        if score_threshold is not None:
            keeps = [result["scores"] > score_threshold for result in results]
            results = [{name: x[keep] for name, x in result.items()} for result, keep in zip(results, keeps)]
            queries = [rows[keep] for rows, keep in zip(queries, keeps)]
        if "pred_masks" in outputs:
            sizes = target_sizes.tolist()  # sync point: shapes have to be known on the host
            extents = outputs["valid_extent"].tolist() if "valid_extent" in outputs else [(1, 1)] * len(sizes)
            for result, mask_logits, rows, size, extent in zip(results, outputs["pred_masks"], queries, sizes, extents):
                height, width = (round(side * share) for side, share in zip(mask_logits.shape[-2:], extent))
                result["masks"] = _resize_masks(mask_logits[:, :height, :width], rows, size)
        return results

    def select(self, outputs: dict) -> Selection:
        """Choose the best pairs of `pred_logits` and `pred_boxes`, as in `forward`."""
        logits = outputs["pred_logits"]
        num_classes = logits.shape[-1]
        scores = _at_least_float32(logits).sigmoid().flatten(1)
        kept = min(self.num_select, scores.shape[1])
        if is_exporting():
            scores, pairs = scores.topk(kept, dim=1)  # which takes the first of equals in ONNX
        else:
            # topk would not promise an order among equal scores, and they are common where sigmoid saturates.
            scores, pairs = (x[:, :kept] for x in scores.sort(dim=1, descending=True, stable=True))
        queries = pairs // num_classes
        boxes = _at_least_float32(outputs["pred_boxes"]).gather(1, queries[..., None].expand(-1, -1, 4))
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        return Selection(scores, pairs % num_classes, torch.cat((centre - half, centre + half), dim=-1), queries)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pixel_boxes(boxes: Tensor, target_sizes: Tensor) -> Tensor:
    """boxes (B, k, 4) xyxy in image units, target_sizes (B, 2) h, w -> (B, k, 4) xyxy pixels, inside the image."""
    limit = target_sizes.flip(1).repeat(1, 2)[:, None].to(boxes)  # w, h, w, h
    return (boxes * limit).clamp(min=0).minimum(limit)


def _resize_masks(logits: Tensor, queries: Tensor, size: tuple[int, int]) -> Tensor:
    """logits (Q, h, w), queries (k,) -> masks (k, 1, H, W) bool, a few at a time."""
    height, width = size
    masks = torch.empty(len(queries), 1, height, width, dtype=torch.bool, device=logits.device)
    at_once = max(1, _MASK_PIXELS_AT_ONCE // (height * width))
    for start in range(0, len(queries), at_once):
        chunk = _at_least_float32(logits[queries[start:start + at_once]])[:, None]
        chunk = F.interpolate(chunk, size=(height, width), mode="bilinear", align_corners=False)
        torch.gt(chunk, 0, out=masks[start:start + at_once])
    return masks
