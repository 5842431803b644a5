"""The training loss: match every layer's queries with the objects, then measure classes, boxes and masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rfdetr.losses.functional import FOREGROUND, background_factor, background_loss, background_sums, relative_quality
from rfdetr.losses.masks import mask_losses, matched_mask_logits
from rfdetr.losses.matcher import HungarianMatcher, Pairs
from rfdetr.losses.pairs import pair_losses
from rfdetr.losses.stacked import FlatTargets, StackedOutputs, layer_sums, to_device

LOSSES = ("labels", "boxes", "cardinality", "masks")


class SetCriterion(nn.Module):
    """Losses of a detector's outputs, of every layer that it returns.

    The total loss is the sum of ``weight_dict[name] * losses[name]`` over the names in both.
    """

    host_targets = True  # a batch's targets are copied in two pieces, and not in several for each image

    def __init__(
        self,
        matcher: HungarianMatcher,
        weight_dict: dict[str, float],
        *,
        losses: Sequence[str] = ("labels", "boxes", "cardinality"),
        class_loss: str = "ia_bce",
        focal_alpha: float = 0.25,
        group_detr: int = 1,
        sum_group_losses: bool = False,
        mask_point_sample_ratio: int = 16,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        """Take plain values: ``group_detr`` is the number of query groups in training (one otherwise);
        ``sum_group_losses`` counts an object once, and not once a group, when losses are divided by the objects;
        ``class_weights`` (C,) are factors on the classification loss of matched queries, by the class of their object."""
        super().__init__()
        if class_loss not in FOREGROUND:
            raise ValueError(f"unknown class_loss {class_loss!r}; known: {', '.join(FOREGROUND)}")
        if unknown := [name for name in losses if name not in LOSSES]:
            raise ValueError(f"unknown losses {unknown}; known: {', '.join(LOSSES)}")
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.losses = tuple(losses)
        self.class_loss = class_loss
        self.focal_alpha = focal_alpha
        self.group_detr = group_detr
        self.sum_group_losses = sum_group_losses
        self.mask_point_sample_ratio = mask_point_sample_ratio
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self, outputs: dict, targets: Sequence[dict], num_boxes: float | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the unweighted losses; aux layers are marked ``_0``, ``_1``, ..., the encoder's outputs ``_enc``.

        ``num_boxes`` is what they are divided by; default: the objects of this batch, averaged over the processes.
        """
        device = outputs["pred_logits"].device
        if num_boxes is None:
            num_boxes = self._average_boxes(targets, device)
        layers = {"": outputs}
        layers |= {f"_{index}": layer for index, layer in enumerate(outputs.get("aux_outputs", ()))}
        if "enc_outputs" in outputs:
            layers["_enc"] = outputs["enc_outputs"]
        with torch.autocast(device.type, enabled=False):  # everything below is float32, or float64 if the outputs are
            return self._losses(layers, targets, num_boxes)

    def count_boxes(self, targets: Sequence[dict]) -> int:
        """Count the objects of this process's batch, once for each group that is trained on them."""
        return sum(len(target["labels"]) for target in targets) * (1 if self.sum_group_losses else self._num_groups)

    @property
    def _num_groups(self) -> int:
        return self.group_detr if self.training else 1

    def _average_boxes(self, targets: Sequence[dict], device: torch.device) -> float | Tensor:
        count = float(self.count_boxes(targets))
        if not (dist.is_available() and dist.is_initialized()):
            return max(count, 1.0)
        total = torch.full((), count, device=device)
        dist.all_reduce(total)
        return (total / dist.get_world_size()).clamp(min=1)

    def _losses(self, layers: dict[str, dict], targets: Sequence[dict], num_boxes: float | Tensor) -> dict[str, Tensor]:
        stacked = StackedOutputs.from_layers(list(layers.values()))
        flat = FlatTargets.from_list(targets, stacked)
        matched = _Matched.from_pairs(self.matcher.match(stacked, flat, self._num_groups), stacked, flat)
        names, table = self._pair_sums(stacked, flat, matched)
        results = {}
        if "labels" in self.losses:
            results["class_error"] = _class_error(stacked, flat, matched)
        if "masks" in self.losses:
            names += ["loss_mask_ce", "loss_mask_dice"]
            table = torch.cat((table, self._mask_sums(stacked, flat, matched)))
        results |= zip([name + suffix for name in names for suffix in layers], (table / num_boxes).flatten().unbind())
        if "cardinality" in self.losses:
            values = _cardinality_error(stacked, flat)
            results |= zip([f"cardinality_error{suffix}" for suffix in layers], values.unbind())
        return results

    def _pair_sums(self, stacked: StackedOutputs, flat: FlatTargets, matched: "_Matched") -> tuple[list[str], Tensor]:
        """The losses of classes and boxes: their names, and a table (losses, L)."""
        predicted, wanted = matched.boxes(stacked, flat)
        l1, giou_loss, iou = pair_losses(predicted, wanted)
        values = {}
        if "labels" in self.losses:
            values["loss_ce"] = self._class_change(stacked, flat, matched, iou)
        if "boxes" in self.losses:
            values |= {"loss_bbox": l1, "loss_giou": giou_loss}
        if not values:
            return [], l1.new_zeros(0, matched.layers.shape[1])
        table = torch.stack(list(values.values()))
        if "labels" not in self.losses:
            return list(values), table @ matched.layers
        background = background_sums(stacked.logits, stacked.query_counts)
        if (factor := background_factor(self.class_loss, self.focal_alpha)) != 1:
            background = factor * background
        return list(values), torch.addmm(F.pad(background[None], (0, 0, 0, len(values) - 1)), table, matched.layers)

    def _class_change(self, stacked: StackedOutputs, flat: FlatTargets, matched: "_Matched", quality: Tensor) -> Tensor:
        """(P,) how far matched logits' losses are from those of background; see `rfdetr.losses.functional`."""
        if self.class_loss == "position_supervised":
            quality = relative_quality(quality, matched.segments, len(matched.lengths))
        logits = matched.class_logits(stacked, flat)
        change = FOREGROUND[self.class_loss](logits, quality, self.focal_alpha)
        if self.class_weights is not None:
            change = change * self.class_weights[flat.labels[matched.objects]].to(change.dtype)
        return change.sub(background_loss(logits), alpha=background_factor(self.class_loss, self.focal_alpha))

    def _mask_sums(self, stacked: StackedOutputs, flat: FlatTargets, matched: "_Matched") -> Tensor:
        """(2, L) cross entropy and dice losses of the matched masks; objects without a mask teach the others alone."""
        if stacked.masks is None or flat.masks is None:
            raise ValueError("mask losses need 'pred_masks' in the outputs of every layer and 'masks' in every target")
        sums = []
        rows, objects = matched.rows.split(matched.lengths), matched.objects.split(matched.layer_counts)
        for layer, masks in enumerate(stacked.masks):
            first = layer * len(flat.sizes)
            logits = matched_mask_logits(masks, rows[first : first + len(flat.sizes)])
            sums.append(torch.stack(mask_losses(logits, flat.masks, objects[layer], self.mask_point_sample_ratio,
                                                counted=flat.has_mask[objects[layer]])))
        return torch.stack(sums, dim=1)


@dataclass(frozen=True)
class _Matched:
    """All P matched pairs of a step, layer after layer, image after image; a segment is an image in a layer."""

    queries: Tensor  # (P,) index into the B * N queries of the stacked outputs
    rows: Tensor  # (P,) index into the queries of the image and layer
    objects: Tensor  # (P,) index into the T objects
    segments: Tensor  # (P,) layer * B + image
    layers: Tensor  # (P, L) one where a pair is of a layer, else zero
    lengths: list[int]  # pairs of each segment
    layer_counts: list[int]  # pairs of each layer

    @classmethod
    def from_pairs(cls, pairs: list[list[Pairs]], stacked: StackedOutputs, flat: FlatTargets) -> "_Matched":
        batch_size, num_queries = stacked.logits.shape[:2]
        lengths = [len(queries) for layer in pairs for queries, _ in layer]
        segments = np.repeat(np.arange(len(lengths)), lengths)
        layers, images = np.divmod(segments, batch_size)
        rows = np.concatenate([queries for layer in pairs for queries, _ in layer])
        starts = np.cumsum([0, *stacked.query_counts[:-1]])
        queries = images * num_queries + starts[layers] + rows
        objects = np.concatenate([objects for layer in pairs for _, objects in layer]) + flat.offsets[images]
        indices = to_device(np.stack([queries, rows, objects, segments]), stacked.device)
        layer_counts = np.bincount(layers, minlength=len(pairs)).tolist()
        of_layer = to_device(layers[:, None] == np.arange(len(pairs)), stacked.device).to(stacked.boxes.dtype)
        return cls(*indices.unbind(), layers=of_layer, lengths=lengths, layer_counts=layer_counts)

    def boxes(self, stacked: StackedOutputs, flat: FlatTargets) -> tuple[Tensor, Tensor]:
        """Predicted and wanted boxes of the pairs, both (P, 4) cxcywh."""
        return stacked.boxes.flatten(0, 1).index_select(0, self.queries), flat.boxes.index_select(0, self.objects)

    def class_logits(self, stacked: StackedOutputs, flat: FlatTargets) -> Tensor:
        """(P,) logits of the wanted classes."""
        index = self.queries * stacked.logits.shape[-1] + flat.labels.index_select(0, self.objects)
        return stacked.logits.flatten().index_select(0, index)


@torch.no_grad()
def _class_error(stacked: StackedOutputs, flat: FlatTargets, matched: _Matched) -> Tensor:
    """Percentage of the final layer's matched queries whose highest logit is not the wanted class."""
    count = matched.layer_counts[0]
    if count == 0:
        return stacked.logits.new_full((), 100.0)
    logits = stacked.logits.flatten(0, 1).index_select(0, matched.queries[:count])
    right = logits.argmax(-1) == flat.labels.index_select(0, matched.objects[:count])
    return 100 - 100 * right.to(logits.dtype).mean()


@torch.no_grad()
def _cardinality_error(stacked: StackedOutputs, flat: FlatTargets) -> Tensor:
    """(L,) how far the number of queries with a probability above one half is from the objects, mean over images."""
    confident = stacked.logits.amax(-1) > 0
    wanted = to_device(np.array(flat.sizes, dtype=np.float32)[:, None], stacked.device)
    return (layer_sums(confident, stacked.query_counts) - wanted).abs().mean(0).to(stacked.logits.dtype)
