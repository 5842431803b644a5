"""Hungarian matching of queries with objects: all layers, groups and images from one table of costs."""

import functools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from rfdetr.box_ops import EPS, cxcywh_to_xyxy
from rfdetr.losses.functional import focal_cost
from rfdetr.losses.masks import mask_costs, mask_size, predictions_at_points, sample_nearest
from rfdetr.losses.stacked import FlatTargets, StackedOutputs, to_device

logger = logging.getLogger(__name__)

MAX_ELEMENTS = {"cpu": 2**18}  # box costs computed at a time: what a CPU's cache can hold, elsewhere what memory can spare

SMALL = 2**20  # costs that are assigned sooner than threads have started

Block = tuple[int, int, int]  # (image, start, stop): the queries of an image with objects start..stop of the batch
Pairs = tuple[np.ndarray, np.ndarray]  # queries and objects of an image, both (m,) int64 and counted within the image


class HungarianMatcher(nn.Module):
    """Give every object of an image its own query of each group, at the lowest total cost."""

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        *,
        focal_alpha: float = 0.25,
        cost_mask_ce: float = 5.0,
        cost_mask_dice: float = 5.0,
        mask_point_sample_ratio: int = 16,
    ) -> None:
        super().__init__()
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.class_costs = ClassCosts(cost_class, focal_alpha)
        self.box_costs = BoxCosts(cost_bbox, cost_giou)
        self.cost_mask_ce = cost_mask_ce
        self.cost_mask_dice = cost_mask_dice
        self.mask_point_sample_ratio = mask_point_sample_ratio
        self._warned_non_finite = False

    @property
    def compile_units(self) -> list[nn.Module]:
        """What `torch.compile` takes whole."""
        return [self.class_costs, self.box_costs]

    @torch.no_grad()
    def forward(self, outputs: dict, targets: Sequence[dict], group_detr: int = 1) -> list[tuple[Tensor, Tensor]]:
        """Match one layer: outputs with Q queries -> (queries, objects), int64, of each image, group after group."""
        stacked = StackedOutputs.from_layers([outputs])
        (pairs,) = self.match(stacked, FlatTargets.from_list(targets, stacked), group_detr)
        return [(torch.from_numpy(queries), torch.from_numpy(objects)) for queries, objects in pairs]

    @torch.no_grad()
    def match(self, stacked: StackedOutputs, targets: FlatTargets, group_detr: int) -> list[list[Pairs]]:
        """Match every layer -> pairs of [layer][image], group after group, ascending queries in a group."""
        for count in stacked.query_counts:
            if count % group_detr:
                raise ValueError(f"{count} queries cannot be split into group_detr={group_detr} equal groups")
        with torch.autocast(stacked.device.type, enabled=False):
            costs = self._costs(stacked, targets)
        bounds, stops = np.cumsum([0, *targets.sizes]), np.cumsum(stacked.query_counts)
        parts = [costs[top:bottom, stop - count : stop] for stop, count in zip(stops, stacked.query_counts)
                 for top, bottom in zip(bounds, bounds[1:])]
        solve = functools.partial(_assign, num_groups=group_detr)
        if costs.size < SMALL or torch.get_num_threads() == 1:
            solved = [solve(part) for part in parts]
        else:
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # SciPy lets the others run while it solves
                solved = list(threads.map(solve, parts))
        size = len(targets.sizes)
        return [solved[first : first + size] for first in range(0, len(solved), size)]

    def _costs(self, stacked: StackedOutputs, targets: FlatTargets) -> np.ndarray:
        """(T, N) on the host: each object with all queries of its own image, all values finite."""
        table = _CostTable(self, stacked, targets)
        bounds = np.cumsum([0, *targets.sizes]).tolist()
        costs = table.rows([(image, *bounds[image : image + 2]) for image in range(len(targets.sizes))])
        costs = costs.cpu().numpy()  # the one point where the host waits for the device
        if not np.isfinite(costs).all():
            self._warn_non_finite()
            costs = np.where(np.isfinite(costs), costs, table.stand_in())
        return costs

    def _warn_non_finite(self) -> None:
        if not self._warned_non_finite:
            logger.warning("predictions give costs that are not finite; such pairs are matched last (said only once)")
            self._warned_non_finite = True


class ClassCosts(nn.Module):
    """Weighted costs of classes."""

    def __init__(self, weight: float, alpha: float) -> None:
        super().__init__()
        self.weight, self.alpha = weight, alpha

    def forward(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """logits (B, N, C), images and labels (R,) -> (R, N)."""
        return focal_cost(logits.transpose(1, 2)[images, labels], self.alpha).mul_(self.weight)


class BoxCosts(nn.Module):
    """Weighted costs of L1 distance and generalized IoU."""

    def __init__(self, weight_l1: float, weight_giou: float) -> None:
        super().__init__()
        self.weight_l1, self.weight_giou = weight_l1, weight_giou

    def forward(self, costs: Tensor, planes: Tensor, wanted: Tensor, images: Tensor | None = None) -> None:
        """Add to costs (R, N), in place: planes (10, 1, N) of one image, or (10, B, N) and images (R,); wanted (10, R)."""
        if images is not None:
            planes = planes.index_select(1, images)  # (10, R, N)
        wanted = wanted[..., None]
        l1 = (planes[:4] - wanted[:4]).abs_().sum(0)
        overlap = torch.minimum(planes[6:8], wanted[6:8]).sub_(torch.maximum(planes[4:6], wanted[4:6]))
        hull_sides = planes[8:] + wanted[8:] - overlap  # before negative overlaps count as none
        overlap.clamp_(min=0)
        intersection, hull = overlap[0] * overlap[1], hull_sides[0] * hull_sides[1]
        union = (planes[8] * planes[9] + wanted[8] * wanted[9]).sub_(intersection)
        giou = intersection.div_(union.clamp(min=EPS)).sub_(hull.sub(union).div_(hull.clamp(min=EPS)))
        costs.add_(l1, alpha=self.weight_l1).sub_(giou, alpha=self.weight_giou)


class _CostTable:
    """Costs of one step's predictions and targets, computed a few rows at a time."""

    def __init__(self, matcher: HungarianMatcher, stacked: StackedOutputs, targets: FlatTargets) -> None:
        self.matcher, self.stacked, self.targets = matcher, stacked, targets
        self.planes = _planes(stacked.boxes)  # (10, B, N): whole rows are quick to gather and to compute on
        self.target_planes = _planes(targets.boxes)  # (10, T)
        self.mask_points = self._draw_mask_points()

    def _draw_mask_points(self) -> list[Tensor]:
        """One set of points (1, P, 2) for each layer, shared by its images; drawn even when there is no object."""
        if self.targets.masks is None:
            return []
        sizes = [mask_size(masks) for masks in self.stacked.masks]
        counts = [max(1, height * width // self.matcher.mask_point_sample_ratio) for height, width in sizes]
        return [torch.rand(1, count, 2, device=self.stacked.device) for count in counts]

    def rows(self, blocks: Sequence[Block]) -> Tensor:
        """Costs (R, N) of the objects of all blocks, in their order."""
        costs = self._class_rows(blocks)
        is_compiled = self.matcher.box_costs._compiled_call_impl is not None  # then nothing in between is stored
        max_rows = len(costs) if is_compiled else MAX_ELEMENTS.get(costs.device.type, 2**22) // costs.shape[1]
        chunks = _split_blocks(blocks, max(1, max_rows))
        parts = costs.split([sum(stop - start for _, start, stop in chunk) for chunk in chunks])
        for part, chunk in zip(parts, chunks):
            self._add_box_costs(part, chunk, gathers=is_compiled or len(chunk) > 1)
        if self.mask_points:
            costs += torch.cat([self._mask_rows(layer, blocks) for layer in range(len(self.mask_points))], dim=1)
        return costs

    def _class_rows(self, blocks: Sequence[Block]) -> Tensor:
        """Weighted class costs (R, N); those of several objects of a class are computed once, if the host knows the labels."""
        images = _images(blocks)
        labels = self.targets.host_labels
        if labels is None:
            labels = torch.cat([self.targets.labels[start:stop] for _, start, stop in blocks])
            return self.matcher.class_costs(self.stacked.logits, to_device(images, self.stacked.device), labels)
        labels = np.concatenate([labels[start:stop] for _, start, stop in blocks])
        num_classes = self.stacked.logits.shape[-1]
        distinct, rows = np.unique(images * num_classes + labels, return_inverse=True)
        image_of, label_of, rows = (to_device(x, self.stacked.device) for x in (*np.divmod(distinct, num_classes), rows))
        return self.matcher.class_costs(self.stacked.logits, image_of, label_of).index_select(0, rows)

    def _add_box_costs(self, costs: Tensor, blocks: Sequence[Block], *, gathers: bool) -> None:
        """Add to the costs (R, N) of the classes, in place."""
        wanted = torch.cat([self.target_planes[:, start:stop] for _, start, stop in blocks], dim=1)
        if gathers:
            self.matcher.box_costs(costs, self.planes, wanted, to_device(_images(blocks), costs.device))
        else:
            self.matcher.box_costs(costs, self.planes[:, blocks[0][0], None], wanted)

    def _mask_rows(self, layer: int, blocks: Sequence[Block]) -> Tensor:
        points, masks = self.mask_points[layer], self.targets.masks
        logits = predictions_at_points(self.stacked.masks[layer], points)
        labels = sample_nearest(masks, torch.arange(len(masks), device=masks.device), points).to(logits.dtype)
        ce, dice = mask_costs(logits, labels, blocks)
        has_mask = torch.cat([self.targets.has_mask[start:stop] for _, start, stop in blocks])
        return (self.matcher.cost_mask_ce * ce + self.matcher.cost_mask_dice * dice) * has_mask[:, None]

    def stand_in(self) -> np.ndarray:
        """(N,) a cost above all finite ones of the query's layer, with all images and objects; only for bad steps."""
        counts = self.stacked.query_counts
        starts = np.cumsum([0, *counts[:-1]])
        highest, largest = np.full(len(counts), -np.inf), np.zeros(len(counts))
        for image in range(len(self.targets.sizes)):
            costs = self.rows([(image, 0, sum(self.targets.sizes))]).cpu().numpy()
            finite = np.isfinite(costs)
            lowered = np.where(finite, costs, -np.inf).max(0)
            highest = np.maximum(highest, np.maximum.reduceat(lowered, starts))
            largest = np.maximum(largest, np.maximum.reduceat(np.where(finite, np.abs(costs), 0).max(0), starts))
        limit = torch.finfo(self.planes.dtype).max
        values = np.where(np.isfinite(highest), np.minimum(highest + largest + 1, limit), limit)
        return np.repeat(values, counts)


def _planes(boxes: Tensor) -> Tensor:
    """Boxes cxcywh (..., 4) -> (10, ...): centre and size, left top and right bottom corners, size without negative ones."""
    corners = cxcywh_to_xyxy(boxes)
    near, far = corners.split(2, dim=-1)
    return torch.cat((boxes, corners, far - near), dim=-1).movedim(-1, 0).contiguous()


def _images(blocks: Sequence[Block]) -> np.ndarray:
    """The image of each object, (R,)."""
    return np.repeat([block[0] for block in blocks], [stop - start for _, start, stop in blocks])


def _split_blocks(blocks: Sequence[Block], max_rows: int) -> list[list[Block]]:
    """Cut blocks into lists of at most ``max_rows`` objects; at least one list, which may hold no object."""
    chunks: list[list[Block]] = [[]]
    free = max_rows
    for image, start, stop in blocks:
        if chunks[-1] and stop - start > free:  # an image to itself needs no gathering
            chunks.append([])
            free = max_rows
        while stop - start > free:
            chunks[-1].append((image, start, start + free))
            chunks.append([])
            start, free = start + free, max_rows
        chunks[-1].append((image, start, stop))
        free -= stop - start
    return chunks


def _assign(costs: np.ndarray, num_groups: int) -> Pairs:
    """Solve the costs of an image (m, Q), a group of queries at a time."""
    empty = np.zeros(0, np.int64)
    queries, objects = [empty], [empty]
    group_size = costs.shape[1] // num_groups
    for first in range(0, costs.shape[1] if len(costs) else 0, group_size):
        chosen_objects, chosen = linear_sum_assignment(costs[:, first : first + group_size])
        order = chosen.argsort()
        queries.append(chosen[order] + first)
        objects.append(chosen_objects[order])
    return np.concatenate(queries), np.concatenate(objects)
