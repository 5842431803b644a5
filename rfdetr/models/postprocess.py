"""From the detector's raw outputs to detections in pixels of the original images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Resized mask pixels held at a time, beside the boolean results: about 100 MB whatever the number of masks.
_MASK_PIXELS_AT_ONCE = 2**23


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
                which with `valid_extent` (B, 2) only that share of h and w shows the image.
            target_sizes: (B, 2) int64, height and width of the original images in pixels.
            score_threshold: drop detections that do not score higher, before their masks are resized; this waits for
                the device, as masks do.

        Returns:
            For each image `scores` (k,), `labels` (k,) int64, `boxes` (k, 4) xyxy pixels inside the image and, with
            masks, `masks` (k, 1, H, W) bool. Equal scores come in the order of query * K + class.
        """
        logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
        if len(target_sizes) != len(logits):
            raise ValueError(f"PostProcess: target_sizes has {len(target_sizes)} rows for {len(logits)} images")
        num_classes = logits.shape[-1]
        # topk would not promise an order among equal scores, and they are common where sigmoid saturates.
        scores, pairs = _at_least_float32(logits).sigmoid().flatten(1).sort(dim=1, descending=True, stable=True)
        scores, pairs = scores[:, : self.num_select], pairs[:, : self.num_select]
        queries, labels = pairs // num_classes, pairs % num_classes
        boxes = _pixel_boxes(boxes, queries, target_sizes.to(boxes.device))
        results = [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(scores, labels, boxes)]
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


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _pixel_boxes(boxes: Tensor, queries: Tensor, target_sizes: Tensor) -> Tensor:
    """boxes (B, Q, 4) cxcywh in image units, queries (B, k), target_sizes (B, 2) h, w -> (B, k, 4) xyxy pixels."""
    boxes = _at_least_float32(boxes).gather(1, queries[..., None].expand(-1, -1, 4))
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    limit = target_sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)  # w, h, w, h
    boxes = torch.cat((centre - half, centre + half), dim=-1) * limit
    return boxes.clamp(min=0).minimum(limit)


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
