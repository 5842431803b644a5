"""Large pictures in overlapping parts: where they are cut, and one result out of those of the parts.

Neighbours overlap by at least a quarter of a part, so an object up to that size is whole in one of them. What is found at a cut
and lies in the overlap is left out: the neighbour sees more of it. Of what is found twice the better score stays (non-maximum
suppression, each class by itself). An object larger than the overlap may be found in pieces: choose larger parts.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

MIN_TILE = 32  # pixels
NMS_IOU = 0.5  # from which on two boxes of a class are one object
AT_EDGE = 64  # a box that ends within the 64th part of a tile from a cut is taken to be cut there

Place = tuple[slice, slice]  # rows, columns


def tile_places(height: int, width: int, tile: int | None) -> list[Place]:
    """Return where a picture is cut: parts of `tile` pixels a side, evenly spread; None: all of it in one."""
    if tile is None:
        return [(slice(0, height), slice(0, width))]
    return [(rows, columns) for rows in _spans(height, tile) for columns in _spans(width, tile)]


def _spans(length: int, tile: int) -> list[slice]:
    room = length - tile
    if room <= 0:
        return [slice(0, length)]
    steps = math.ceil(room / (tile - tile // 4))
    return [slice(start, start + tile) for start in (round(room * number / steps) for number in range(steps + 1))]


def join(found: Sequence[dict[str, Tensor]], places: Sequence[Place], size: Sequence[int], tile: int) -> dict[str, Tensor]:
    """Make one result, best first, out of those of the parts of a picture of `size` (h, w)."""
    pieces = []
    for part, (result, (rows, columns)) in enumerate(zip(found, places)):
        boxes = result["boxes"] + result["boxes"].new_tensor([columns.start, rows.start] * 2)
        kept = ~_is_seen_better(boxes, rows, columns, size, tile)
        index = torch.stack([torch.full_like(result["labels"], part), torch.arange(len(boxes))], dim=1)
        pieces.append([values[kept] for values in (boxes, result["scores"], result["labels"], index)])
    boxes, scores, labels, origins = (torch.cat(column) for column in zip(*pieces))
    kept = batched_nms(boxes, scores, labels, NMS_IOU)
    joined = {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}
    if "masks" in found[0]:
        joined["masks"] = torch.zeros(len(kept), 1, *size, dtype=torch.bool)
        for mask, (part, row) in zip(joined["masks"], origins[kept].tolist()):
            mask[0][places[part]] = found[part]["masks"][row, 0]
    return joined


def _is_seen_better(boxes: Tensor, rows: slice, columns: slice, size: Sequence[int], tile: int) -> Tensor:
    """boxes (n, 4) of a part, xyxy pixels of the picture -> (n,) bool: cut, and all of what is left lies in a neighbour too."""
    low, high = boxes.new_tensor([columns.start, rows.start]), boxes.new_tensor([columns.stop, rows.stop])
    limit = boxes.new_tensor([size[1], size[0]])
    first, last, slack = boxes[:, :2], boxes[:, 2:], tile / AT_EDGE
    overlap = tile // 4 - 2 * slack  # what is left out here is not at the cut of the neighbour, who would leave it out too
    at_low = (low > 0) & (first <= low + slack) & (last <= low + overlap)
    at_high = (high < limit) & (last >= high - slack) & (first >= high - overlap)
    return (at_low | at_high).any(dim=1)
